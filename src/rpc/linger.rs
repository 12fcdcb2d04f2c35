//! Closing connections so that the other side reads everything that was sent to it. A connection that is closed with
//! bytes of the client unread, a window update say, is reset by the operating system, and the client loses what it
//! had not read yet: how a stream ended. So the server says that it is done, and reads on until the client closes.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a client has to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that is closed like that.
pub struct Lingering {
    stream: TcpStream,
    /// Until when, once everything is sent.
    closing: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    pub fn new(stream: TcpStream) -> Self {
        Lingering { stream, closing: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Lingering { stream, closing } = &mut *self;
        if closing.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let until = closing.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut unread = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client has closed too, or is gone.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that sends and closes while bytes of the client are on their way.
    async fn received(listener: TcpListener, lingers: bool) -> Result<usize> {
        const SENT: usize = 256 * 1024;
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        let (mut stream, _) = listener.accept().await?;
        client.write_all(b"more room").await?;
        stream.readable().await?;
        let serving = tokio::spawn(async move {
            if lingers {
                let mut stream = Lingering::new(stream);
                stream.write_all(&[1; SENT]).await?;
                stream.shutdown().await
            } else {
                stream.write_all(&[1; SENT]).await?;
                stream.shutdown().await
            }
        });
        if !lingers {
            serving.await.expect("it ends")?;
            let mut all = Vec::new();
            return client.read_to_end(&mut all).await;
        }
        let mut all = Vec::new();
        let read = client.read_to_end(&mut all).await;
        drop(client);
        serving.await.expect("it ends")?;
        read.inspect(|read| assert_eq!(*read, SENT))
    }

    #[tokio::test]
    async fn a_client_reads_everything_although_the_server_has_not() {
        let listen = || TcpListener::bind("127.0.0.1:0");
        assert!(received(listen().await.expect("a port"), true).await.is_ok());
        let reset = received(listen().await.expect("a port"), false).await;
        let reset = reset.map_err(|error| error.kind());
        assert_eq!(reset, Err(std::io::ErrorKind::ConnectionReset));
    }
}
