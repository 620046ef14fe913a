//! The suite: a real server, the shipped packages, real clients. One binary; this page is its table of contents.

// What a picture is: prompts, seeds, sizes, file formats, samplers, guidance.
mod images;
// Files of numbers, and how an image came about: what NumPy reads, and what a PNG carries.
mod outputs;
// An image on its way: streams and previews, trajectories, beginnings that a client hands in.
mod trajectories;
// Pictures that are made again, and those that are not what they say.
mod replay;
// What a model attends to, in every form, beside images, and what a wrong look is told.
mod analysis;
// The Jacobian: against libtorch, against itself by other ways, its pictures, and what a wrong look is told.
mod jacobian;
// The PSNR gap: the trainer's own numbers, whatever form the images come in, and what wrong images are told.
mod psnr_gap;
// A request alone and the same request in any company, byte for byte.
mod batching;
// Admission by cost, deadlines, cancelling, fair shares, and models replaced under way.
mod scheduling;
// Versions swapped, models unloaded and a device shared, all under load.
mod swap;
// A storm of clients of every kind, and nothing left of it.
mod soak;
// Every field of the OpenAI images API, and the `openai` package as a client.
mod openai;
// The Open Inference Protocol, and the `tritonclient` package as a client.
mod v2;
// Our own Python client, installed by pip, and the tests that lie beside it.
mod python_client;
// What a wrong field, a wrong body and a body without end are told, and what a full queue says.
mod limits;
// A refusal is in our words, and none of the inside.
mod words;
// Clients that leave, that are slow, or that change their mind.
mod clients;
// Memory that requests share: for frames, for bodies, for answers.
mod memory;
// Jobs over HTTP: orders, owners, pages, events, results and their ranges, and looks that nobody waits for.
mod job_routes;
// Orders that outlive their call, by servers that are killed.
mod jobs;
// A database that says nothing, any more or at all.
mod silence;
// Uploads that are not what they say: bombs, sizes that lie, addresses that nobody is to visit.
mod uploads;
// What goes wrong around a server: killed clients, a clock that jumps, a disk that is full, SIGTERM under load.
mod faults;
// What a connection may cost: time, memory, streams, and how many there may be.
mod connections;
// Ten thousand of them that do nothing.
mod idle;
// HTTPS and its certificates, HTTP/2, Unix sockets, the metrics' own listener.
mod sockets;
// Every route, without a key and with every role; keys that change under way; pages of other origins.
mod access;
// Flags, variables and a file; everything that is wrong, at once.
mod config;
// What is served: /v1/models, readiness, every shipped package, the README's own command.
mod models;
// Damaged packages: each is refused with an error that names the file.
mod package;
// Manifests of every released format version are still read.
mod formats;
// The windows of the graph that serves are tiles.
mod tiles;
// Every ONNX file passes its own project's checker and carries the checkpoint's names.
mod onnx;
// What no shipped network has, in ONNX Runtime: a UNet of convolutions.
mod unet;
// From a recipe to answers: three channels, and a package that brings its images along.
mod recipe;
// The document clients read, and its examples. If this differs, run `cargo xtask openapi` and review the diff.
mod openapi;
// What fuzzing found.
mod fuzz;
// Whatever schemathesis can think of, against the document.
mod schemathesis;
// /metrics in Prometheus' format, and numbers that move as they should.
mod metrics;
// A real Prometheus, and its linter, on the same.
mod prometheus;
// Images, alerts and the dashboard: what docker/ promises.
mod docker;
// What a line of the log tells, and that nobody waits for its reader.
mod log;
// Spans, as a collector receives them.
mod traces;
// The binary as a process: signals, exit codes, refusals to start.
mod process;
