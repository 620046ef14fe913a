//! A connection whose peer has to take what it is sent, at the least [`Pace`]. A client that stops reading, or reads a little
//! now and then, would otherwise keep its answer, and its place, for as long as it likes.
//!
//! And one that is closed in order (RFC 9112, section 9.6): what the peer still sends is read and thrown away for a
//! moment. Otherwise the kernel resets the connection, and a client that was told why its body is refused may lose the
//! answer while it still writes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pace::Pace;

/// How long a connection that was closed still takes what its peer sends.
const LINGER: Duration = Duration::from_secs(1);

/// A stream with a bound on how long a write may wait.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    pace: Pace,
    /// The end of the wait, while there is one.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The end of the lingering, once nothing more is written.
    lingers: Option<Pin<Box<Sleep>>>,
}

// === impl Paced ===

impl<S> Paced<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, pace: Pace::new(limit), deadline: None, lingers: None }
    }

    /// The outcome of a write, which may not be pending for ever. Where it is done, so many bytes were taken.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        taken: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        if let Poll::Ready(outcome) = outcome {
            self.deadline = None;
            self.pace.took(outcome.as_ref().map_or(0, taken), 1, now);
            return Poll::Ready(outcome);
        }
        self.pace.waits(now);
        let end = self.pace.end().unwrap_or(now);
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, outcome, |&bytes| bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(context, outcome, |&bytes| bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing waits here: below is a socket, whose flush is done at once.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.bounded(context, outcome, |()| 0))?;
            self.lingers = Some(Box::pin(sleep_until(Instant::now() + LINGER)));
        }
        self.linger(context)
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads until the peer has closed its side too, or has had its moment. What goes wrong no longer matters.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 8192];
        loop {
            if self.lingers.as_mut().is_some_and(|end| end.as_mut().poll(context).is_ready()) {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_stops_ends_it_and_a_slow_one_does_not() {
        // As slow as may be is 16 KiB in that time: this one takes them in an eighth of it, again and again.
        let limit = Duration::from_secs(2);
        let (mut reader, writer) = tokio::io::duplex(4096);
        let mut writer = Paced::new(writer, limit);
        let slow = async {
            let mut bytes = [0; 4096];
            for _ in 0..40 {
                tokio::time::sleep(limit / 32).await;
                reader.read_exact(&mut bytes).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(writer.write_all(&[0; 41 << 12]), slow);
        written.unwrap();
        let start = Instant::now();
        let error = writer.write_all(&[0; 40]).await.unwrap_err();
        assert!(error.kind() == io::ErrorKind::TimedOut, "{error}");
        assert!((limit / 2..limit * 5).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_byte_now_and_then_ends_it_too() {
        let limit = Duration::from_millis(500);
        let (mut reader, writer) = tokio::io::duplex(8);
        let mut writer = Paced::new(writer, limit);
        let trickle = async {
            while reader.read_u8().await.is_ok() {
                tokio::time::sleep(limit / 50).await;
            }
        };
        let start = Instant::now();
        let written = async {
            let written = writer.write_all(&[0; 1 << 20]).await;
            drop(writer);
            written
        };
        let (written, ()) = tokio::join!(written, trickle);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < limit * 10, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn what_comes_after_the_end_is_taken_for_a_moment() {
        let (mut peer, stream) = tokio::io::duplex(8);
        let mut stream = Paced::new(stream, Duration::from_secs(60));
        // A peer that writes on, and then closes: nothing of it is refused.
        let (closed, written) = tokio::join!(stream.shutdown(), async {
            let written = peer.write_all(&[0; 100]).await;
            drop(peer);
            written
        });
        closed.unwrap();
        written.unwrap();
        // One that does not close has its moment.
        let (_peer, stream) = tokio::io::duplex(8);
        let start = Instant::now();
        Paced::new(stream, Duration::from_secs(60)).shutdown().await.unwrap();
        assert!((LINGER..LINGER * 5).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
