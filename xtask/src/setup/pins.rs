//! What is downloaded, byte for byte: each package, the wheels it comes in, the files taken out of them, and
//! the digest of each. The table is the whole truth about third-party binaries in this project; a file that
//! differs is refused.
//!
//! Wheels differ per Python version though the libraries inside are the same, so one version is always asked
//! for ([`WHEELS_FOR`]). To move to a new version: `python3 -m pip download` it with these arguments,
//! `sha256sum` the wheel and the libraries in it.

/// The arguments by which pip finds the same wheel on every machine, whatever Python runs it.
pub(crate) const WHEELS_FOR: [&str; 14] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux2014_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
];

/// One folder of the cache, named `<name>-<version>`.
pub(crate) struct Package {
    pub name: &'static str,
    pub version: &'static str,
    pub wheels: &'static [Wheel],
    /// Small files that no wheel holds.
    pub texts: &'static [Text],
}

/// One download.
pub(crate) struct Wheel {
    /// As pip wants it: `name==version`.
    pub requirement: &'static str,
    pub digest: Digest,
    pub takes: &'static [Take],
}

/// Something taken out of a wheel: a path in it, and a path under the package's folder.
pub(crate) enum Take {
    /// A file whose digest is pinned.
    File { from: &'static str, to: &'static str, digest: Digest },
    /// A folder of headers, `from` and `to` without a slash at the end. The wheel's digest pins the contents.
    Tree { from: &'static str, to: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    /// In bytes.
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: &'static str,
}

pub(crate) struct Text {
    pub to: &'static str,
    pub content: &'static str,
}

/// ONNX Runtime's library in the folder of either build.
pub(crate) const ORT_LIBRARY: &str = "libonnxruntime.so.1.30.0";

pub(crate) static ONNXRUNTIME: Package = Package {
    name: "onnxruntime",
    version: "1.30.0",
    wheels: &[Wheel {
        requirement: "onnxruntime==1.30.0",
        digest: digest(23_561_046, "fd54b314ea385bcecac69ab431f020ba503e3878dad4ebb645fec5a24b041242"),
        takes: &[
            Take::File {
                from: "onnxruntime/capi/libonnxruntime.so.1.30.0",
                to: ORT_LIBRARY,
                digest: digest(
                    28_985_152,
                    "c902c70b3003c0e99fada202f37478c515ae9bba7944c2b2abd0017bae0c82ed",
                ),
            },
            ORT_SHARED,
            ORT_LICENCE,
        ],
    }],
    texts: &[],
};

/// For CUDA 13. TensorRT's provider is in the wheel too; nothing here uses it.
pub(crate) static ONNXRUNTIME_CUDA: Package = Package {
    name: "onnxruntime-gpu",
    version: "1.30.0",
    wheels: &[Wheel {
        requirement: "onnxruntime-gpu==1.30.0",
        digest: digest(246_658_419, "4fbf0c5d7b5fb99266c2e8a802e3e64af68bdc383e0f3c7349b985f1087eedaa"),
        takes: &[
            Take::File {
                from: "onnxruntime/capi/libonnxruntime.so.1.30.0",
                to: ORT_LIBRARY,
                digest: digest(
                    29_062_976,
                    "5a140dc17c8b60b35b2ceab0bb533e65ac54f06a208948417c1f9c31df6afc4c",
                ),
            },
            ORT_SHARED,
            Take::File {
                from: "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                to: "libonnxruntime_providers_cuda.so",
                digest: digest(
                    272_049_904,
                    "9d7587acb137b31bf84e4d32dc444b969bb601d098b01395effcacfe4341e364",
                ),
            },
            ORT_LICENCE,
        ],
    }],
    texts: &[],
};

/// The same bytes in both builds.
const ORT_SHARED: Take = Take::File {
    from: "onnxruntime/capi/libonnxruntime_providers_shared.so",
    to: "libonnxruntime_providers_shared.so",
    digest: digest(14_632, "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d"),
};
const ORT_LICENCE: Take = Take::File {
    from: "onnxruntime/LICENSE",
    to: "LICENSE",
    digest: digest(1_073, "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c"),
};

/// The CPU half of the CUDA wheel. libtorch_cpu.so is linked against CUDA's runtime and its profiling
/// interface, both small, so those two come along; libtorch_cuda.so and the gigabytes behind it do not.
/// `libtorch.so` is a linker script, since the bindings ask for `-ltorch`, and the real one would pull in
/// CUDA.
pub(crate) static LIBTORCH: Package = Package {
    name: "libtorch",
    version: "2.11.0",
    wheels: &[
        Wheel {
            requirement: "torch==2.11.0",
            digest: digest(530_604_548, "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"),
            takes: &[
                Take::File {
                    from: "torch/lib/libtorch_cpu.so",
                    to: "lib/libtorch_cpu.so",
                    digest: digest(
                        451_209_129,
                        "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91",
                    ),
                },
                Take::File {
                    from: "torch/lib/libc10.so",
                    to: "lib/libc10.so",
                    digest: digest(
                        1_498_969,
                        "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640",
                    ),
                },
                Take::File {
                    from: "torch/lib/libgomp.so.1",
                    to: "lib/libgomp.so.1",
                    digest: digest(
                        254_009,
                        "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890",
                    ),
                },
                Take::Tree { from: "torch/include", to: "include" },
                Take::File {
                    from: "torch-2.11.0.dist-info/licenses/LICENSE",
                    to: "LICENSE",
                    digest: digest(
                        351_341,
                        "a0d7abc10248a062a2f309bf12981524973f2a61aadccf4c5099d96d8c388cf4",
                    ),
                },
            ],
        },
        Wheel {
            requirement: "nvidia-cuda-runtime==13.0.96",
            digest: digest(2_243_632, "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
            takes: &[Take::File {
                from: "nvidia/cu13/lib/libcudart.so.13",
                to: "lib/libcudart.so.13",
                digest: digest(704_288, "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0"),
            }],
        },
        Wheel {
            requirement: "nvidia-cuda-cupti==13.0.85",
            digest: digest(10_715_597, "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
            takes: &[Take::File {
                from: "nvidia/cu13/lib/libcupti.so.13",
                to: "lib/libcupti.so.13",
                digest: digest(4_152_208, "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e"),
            }],
        },
    ],
    texts: &[
        Text { to: "lib/libtorch.so", content: "INPUT(libtorch_cpu.so)\n" },
        Text { to: "build-version", content: "2.11.0+cpu\n" },
    ],
};

const fn digest(size: u64, sha256: &'static str) -> Digest {
    Digest { size, sha256 }
}

// === impl Package ===

impl Package {
    pub(crate) fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// How many bytes of disk it takes to set up, at most: the largest wheel, and everything that stays.
    pub(crate) fn bytes_needed(&self) -> u64 {
        let largest = self.wheels.iter().map(|wheel| wheel.digest.size).max().unwrap_or(0);
        largest + self.wheels.iter().map(Wheel::bytes_kept).sum::<u64>()
    }
}

// === impl Wheel ===

impl Wheel {
    /// A tree has no pinned size; libtorch's headers, the only one, are 39 MB.
    pub(crate) fn bytes_kept(&self) -> u64 {
        let kept = |take: &Take| match take {
            Take::File { digest, .. } => digest.size,
            Take::Tree { .. } => 40_000_000,
        };
        self.takes.iter().map(kept).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Component, Path};

    use super::*;

    #[test]
    fn every_pin_is_well_formed() {
        for package in [&ONNXRUNTIME, &ONNXRUNTIME_CUDA, &LIBTORCH] {
            let mut places = BTreeSet::new();
            let mut place = |to: &'static str| {
                assert!(
                    Path::new(to).components().all(|part| matches!(part, Component::Normal(_))),
                    "{to} leaves the folder"
                );
                assert!(places.insert(to), "{to} is written twice in {}", package.name);
            };
            for wheel in package.wheels {
                assert!(wheel.requirement.contains("=="), "{} is not pinned", wheel.requirement);
                assert_well_formed(wheel.digest);
                for take in wheel.takes {
                    match take {
                        Take::File { to, digest, .. } => {
                            assert_well_formed(*digest);
                            place(to);
                        }
                        Take::Tree { from, to } => {
                            assert!(!from.ends_with('/') && !to.ends_with('/'));
                            place(to);
                        }
                    }
                }
            }
            package.texts.iter().for_each(|text| place(text.to));
        }
    }

    fn assert_well_formed(digest: Digest) {
        assert!(digest.size > 0);
        assert_eq!(digest.sha256.len(), 64, "{}", digest.sha256);
        assert!(
            digest.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
            "{}",
            digest.sha256
        );
    }

    #[test]
    fn what_is_told_of_the_download_is_its_size() {
        let bytes: u64 = LIBTORCH.wheels.iter().map(|wheel| wheel.digest.size).sum();
        let told = format!("{} MB", (bytes + 500_000) / 1_000_000);
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&format!("downloads {told} of it")), "the README does not say {told}");
        let help = include_str!("../main.rs");
        assert!(help.contains(&format!("{told} more to train or test")), "the help does not say {told}");
    }

    #[test]
    fn folders_and_sizes() {
        assert_eq!(LIBTORCH.folder(), "libtorch-2.11.0");
        assert_eq!(ONNXRUNTIME_CUDA.folder(), "onnxruntime-gpu-1.30.0");
        assert!(
            (1_000_000_000..1_100_000_000).contains(&LIBTORCH.bytes_needed()),
            "{}",
            LIBTORCH.bytes_needed()
        );
    }
}
