//! Logs every byte that rmcp moves through its streams, below `$MCPSPY_TRUTH`.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The log of one end of a session.
pub struct End(PathBuf);

/// A stream, and the log of what went through it.
pub struct Tee<T> {
    inner: T,
    log: File,
}

pub fn server() -> io::Result<End> {
    end(&format!("server-{}-0", std::process::id()))
}

pub fn client(child: u32) -> io::Result<End> {
    let end = end(&format!("client-{}-0", std::process::id()))?;
    std::fs::write(end.0.with_extension("child"), child.to_string())?;
    Ok(end)
}

fn end(name: &str) -> io::Result<End> {
    let directory = std::env::var_os("MCPSPY_TRUTH").ok_or(io::ErrorKind::NotFound)?;
    Ok(End(PathBuf::from(directory).join(name)))
}

impl End {
    pub fn wrap<R, W>(&self, read: R, write: W) -> io::Result<(Tee<R>, Tee<W>)> {
        let open = |kind| File::create(self.0.with_extension(kind));
        Ok((Tee { inner: read, log: open("received")? }, Tee { inner: write, log: open("sent")? }))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tee<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        Poll::Ready(self.log.write_all(&buf.filled()[before..]))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tee<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.log.write_all(&buf[..count])?;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let part = &buf[..left.min(buf.len())];
            self.log.write_all(part)?;
            left -= part.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
