//! A server in this process, asked over a real socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use windowpane_server::jobs::Settings;
use windowpane_server::jobs::place::Place;
use windowpane_server::serve::Listener;
use windowpane_server::{App, Config, Listeners, jobs, serve};

use crate::answer::Answer;
use crate::{IMAGES, REMEDY, shipped};

/// Time that anything may take on a busy machine before a test calls it hanging: a whole spectrum is most of a minute's work
/// on two cores that do nothing else.
const PATIENCE: Duration = Duration::from_secs(300);

/// Time that the clients here keep an idle connection.
const IDLE: Duration = Duration::from_secs(5);

/// The runtime of every server and client here.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("the machine has threads to give"))
}

/// A server; it leaves when this is dropped.
#[derive(Debug)]
pub struct TestServer {
    app: App,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    client: reqwest::Client,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

// === impl TestServer ===

impl TestServer {
    /// The configuration that tests start from: `models/tiny`, ticks of few rows, which load faster because the largest
    /// tick is measured, and patience for a busy machine.
    pub fn config() -> Config {
        let max_backlog = Duration::from_secs(3600);
        Config { models: shipped("tiny"), max_rows: 8, max_backlog, ..Config::default() }
    }

    /// The server of every test that needs nothing of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<TestServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Self::config()))
    }

    /// One with every shipped package, as `windowpane` serves them, but for the patience. It takes jobs and does none.
    pub fn shelf() -> &'static Self {
        static SHELF: OnceLock<TestServer> = OnceLock::new();
        SHELF.get_or_init(|| {
            let max_backlog = Self::config().max_backlog;
            let folder = tempfile::tempdir().expect("a folder for jobs").keep();
            let place = Place::Sqlite(folder.join("jobs.sqlite"));
            let jobs = Settings { place, workers: 0, after: max_backlog, ..Settings::default() };
            let models = crate::root().join("models");
            Self::start(Config { models, max_backlog, jobs, ..Config::default() })
        })
    }

    /// A server that has loaded its models.
    pub fn start(config: Config) -> Self {
        let server = Self::loading(config);
        server.app.load().unwrap_or_else(|error| panic!("{error}; {REMEDY}"));
        server
    }

    /// A server whose models are still to be loaded, by [`App::load`].
    pub fn loading(config: Config) -> Self {
        let app = App::new(config);
        runtime().block_on(jobs::open(&app)).expect("a store that opens");
        let listeners = runtime().block_on(Listeners::bind(app.config())).expect("a free port");
        let address = listeners.main.address().expect("it listens on the network");
        let metrics = listeners.metrics.as_ref().and_then(Listener::address);
        let (stop, stopped) = oneshot::channel();
        // A dropped sender stops it too.
        let until = async move { _ = stopped.await };
        let serving = runtime().spawn(serve(listeners, app.clone(), until));
        // The machine's proxy is not for a server on this machine; and an idle connection is given up before the server
        // does so, after `header_timeout`, perhaps just when it is used again.
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_idle_timeout(IDLE);
        let client = client.build().expect("a client");
        Self { app, address, metrics, client, stop, serving }
    }

    /// The application behind it.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `http://address` of the metrics, where they have a listener of their own.
    pub fn metrics_url(&self) -> Option<String> {
        self.metrics.map(|address| format!("http://{address}"))
    }

    /// Runs a future on the runtime of server and clients.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        runtime().block_on(future)
    }

    /// Runs a future beside the caller, on the same runtime.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        runtime().spawn(future)
    }

    /// GET.
    pub fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(self.url() + path))
    }

    /// A request to change and then [`send`](Self::send): POST of this body to the images route.
    pub fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(self.url() + IMAGES).header(CONTENT_TYPE, "application/json").body(body)
    }

    /// A request of any kind.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap_or_else(|_| panic!("`{method}` is not a method"));
        self.client.request(method, self.url() + path)
    }

    /// Sends a request.
    pub fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.block_on(self.answer(request))
    }

    /// The answer to a request, for tests that send many at a time; dropping the future hangs up.
    pub async fn answer(&self, request: reqwest::RequestBuilder) -> Answer {
        let read = async { Answer::read(request.send().await?).await };
        read.await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// A server for as long as the test process lives, for tests whose clients are tasks.
    pub fn leaked(config: Config) -> &'static Self {
        Box::leak(Box::new(Self::start(config)))
    }

    /// A request to change and then [`answer`](Self::answer): POST of this body to a server elsewhere.
    pub fn elsewhere_request(&self, url: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string())
    }

    /// The same with a body of any kind.
    pub fn request_to(
        &self,
        url: &str,
        kind: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        self.client.post(url).header(CONTENT_TYPE, kind).body(body)
    }

    /// A request to change and then [`answer`](Self::answer): DELETE at a server elsewhere.
    pub fn delete(&self, url: &str) -> reqwest::RequestBuilder {
        self.client.delete(url)
    }

    /// Asks a server elsewhere, such as another process's.
    pub fn elsewhere(&self, method: &str, url: &str, body: Option<&Value>) -> Result<Answer, String> {
        let method = method.parse().unwrap_or_else(|_| panic!("`{method}` is not a method"));
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let read = async { Answer::read(request.send().await?).await };
        self.block_on(read).map_err(|error: reqwest::Error| format!("{error:?}"))
    }

    /// Asks for images as JSON.
    pub fn generate(&self, body: &Value) -> Answer {
        self.send(self.post(body.to_string()))
    }

    /// Asks for the bytes of one picture.
    pub fn picture(&self, accept: &str, body: &Value) -> Answer {
        self.send(self.post(body.to_string()).header(ACCEPT, accept))
    }

    /// Asks for one PNG, for tests that run many at a time; dropping the future hangs up.
    pub async fn png(&self, body: &Value) -> Vec<u8> {
        self.answer(self.post(body.to_string()).header(ACCEPT, "image/png")).await.ok().bytes
    }

    /// Writes these bytes to a socket of its own and reads until the server closes it. Nothing of HTTP is done for the
    /// caller, who asks for `connection: close`.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.address.port())).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let written = stream.write_all(bytes);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).map(|_| ());
        // A reset after the answer is the server's right: it has not read all that was announced, or all that was sent.
        if let Err(error) = written.and(read) {
            assert!(!answer.is_empty(), "no answer: {error}");
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Images admitted and not finished.
    pub fn images(&self) -> usize {
        self.app.images()
    }

    /// Waits until so many images are under way.
    pub fn until_images(&self, images: usize) {
        self.until(&format!("{images} images are under way"), || self.images() == images);
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until something is so, before more than so many calls of the network are counted. A machine that is busy counts
    /// slowly and may look late, which allows nothing more: a count is read before the look that finds it not so.
    pub fn until_within(&self, calls: u64, count: impl Fn() -> u64, what: &str, is_so: impl Fn() -> bool) {
        let (start, first) = (Instant::now(), count());
        loop {
            let so_far = count() - first;
            if is_so() {
                return;
            }
            assert!(so_far <= calls, "{so_far} calls went by and not yet {what}");
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Tells it to leave and waits until it has.
    pub fn leave(self) {
        let Self { stop, serving, .. } = self;
        // An error means that it has left already.
        let _ = stop.send(());
        let left = runtime().block_on(async { tokio::time::timeout(PATIENCE, serving).await });
        left.expect("it leaves in time").expect("it does not panic").expect("it leaves without an error");
    }

    /// Tells it to leave and does not wait; the server can still be asked.
    pub fn begin_to_leave(&mut self) {
        let (stop, _) = oneshot::channel();
        let _ = std::mem::replace(&mut self.stop, stop).send(());
    }
}
