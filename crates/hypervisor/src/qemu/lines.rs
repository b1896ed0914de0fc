//! Lines of bounded length from a stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// No honest message comes near this.
const MAX_LINE: usize = 1 << 20;

/// Splits a stream at its newlines.
pub(super) struct Lines<R> {
    stream: R,
    buffered: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(stream: R) -> Self {
        Self {
            stream,
            buffered: Vec::new(),
        }
    }

    /// The next line without its newline; nothing at the end of the stream,
    /// where half a line does not count.
    ///
    /// # Errors
    /// InvalidData for a line that is too long.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffered[searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let rest = self.buffered.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffered, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.buffered.len();
            if searched > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.buffered).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_whatever_the_reads_bring() {
        let (mut sender, receiver) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut sender, b"one\n\ntwo and\nhalf").await
        });
        let mut lines = Lines::new(receiver);
        for expected in ["one", "", "two and"] {
            let line = lines.next().await.unwrap().unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
        assert_eq!(lines.next().await.unwrap(), None);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let mut lines = Lines::new(tokio::io::repeat(b'x'));
        let error = lines.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
