//! The lines of the log on their way out: whoever has one hands it over and goes on, and a thread of its own writes them.
//! Where that does not keep up a number of lines waits; what is more is lost, and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two looks at whether all is written.
const LOOK: Duration = Duration::from_millis(1);

/// The lines' queue. Whoever writes to it writes whole lines.
#[derive(Debug)]
pub(super) struct Lines {
    queue: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

// === impl Lines ===

impl Lines {
    /// Lines that are written to `output`, of which at most so many wait. A line that cannot be written is gone. Errors: no
    /// thread.
    pub(super) fn written_to(mut output: impl Write + Send + 'static, most: usize) -> io::Result<Self> {
        let (queue, lines) = sync_channel::<Vec<u8>>(most);
        let counts = Arc::<Counts>::default();
        let own = Arc::clone(&counts);
        let write = move || {
            for line in lines {
                let _ = output.write_all(&line);
                own.waiting.fetch_sub(1, SeqCst);
            }
        };
        thread::Builder::new().name("log".to_owned()).spawn(write)?;
        Ok(Self { queue, counts })
    }

    /// Lines that were lost.
    pub(super) fn lost(&self) -> u64 {
        self.counts.lost.load(SeqCst)
    }

    /// Waits until all that was handed over is written, and no longer than that; whether it is.
    pub(super) fn flush(&self, until: Instant) -> bool {
        while self.counts.waiting.load(SeqCst) > 0 {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Before it is there: the thread that writes it takes it off again.
        self.counts.waiting.fetch_add(1, SeqCst);
        if self.queue.try_send(line.to_vec()).is_err() {
            self.counts.waiting.fetch_sub(1, SeqCst);
            self.counts.lost.fetch_add(1, SeqCst);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_writes_never_waits_and_what_is_too_much_is_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::written_to(writer, 2).unwrap();
        // More than a pipe takes: the thread waits with the first, two wait behind it.
        let line = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            (&lines).write_all(&line).unwrap();
        }
        let lost = lines.lost();
        assert!((7..=8).contains(&lost), "{lost}");
        let began = Instant::now();
        assert!(!lines.flush(began + Duration::from_millis(20)), "nobody reads");
        assert!(began.elapsed() >= Duration::from_millis(20));
        let read = thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        assert!(lines.flush(Instant::now() + LONG));
        (&lines).write_all(b"the last\n").unwrap();
        assert!(lines.flush(Instant::now() + LONG));
        drop(lines);
        assert_eq!(read.join().unwrap(), (10 - lost) * (1 << 20) + 9);
    }
}
