//! The control connection, watched for its end: the ttrpc server keeps that to
//! itself.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{session::Ending, transport::Connection};

/// See the module.
pub(crate) struct Control {
    connection: Connection,
    ended: Arc<Ending>,
}

impl Control {
    /// Tells `ended` when the host has closed the connection or it broke.
    pub(crate) fn new(connection: Connection, ended: Arc<Ending>) -> Self {
        Self { connection, ended }
    }
}

impl AsyncRead for Control {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.connection).poll_read(context, buffer));
        let at_end = buffer.filled().len() == before && buffer.remaining() > 0;
        if result.is_err() || at_end {
            self.ended.now();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Control {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}
