//! The preface of a stream connection.
//!
//! ```text
//! host → guest   u16 length (little endian), StreamHello (protobuf)
//! guest → host   u8  0 = attached, anything else: no such stream
//! ```

use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use crate::agent::{StreamHello, stream_hello::Stream};

/// Longest preface that is read, in bytes: two ids and the stream's number.
const MAX_PREFACE: usize = 2 * crate::MAX_ID + 16;

/// Answer of the guest when the stream is attached.
const ATTACHED: u8 = 0;
/// Answer of the guest when there is no such stream, or it is taken.
const REFUSED: u8 = 1;

/// Why a stream could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke.
    #[error("stream connection: {0}")]
    Io(#[from] std::io::Error),
    /// The preface is longer than two ids can be.
    #[error("stream preface of {0} bytes is over the limit")]
    TooLong(usize),
    /// The preface is not a StreamHello message.
    #[error("stream preface: {0}")]
    Malformed(#[from] protobuf::Error),
    /// The guest has no such stream, or it is attached already.
    #[error("the guest refused the stream")]
    Refused,
}

/// Host side: says which stream a fresh connection is for and waits for the
/// guest's word.
///
/// # Errors
/// [`Error::Refused`] when the guest does not know the stream; I/O errors.
pub async fn request<S>(connection: &mut S, hello: &StreamHello) -> Result<(), Error>
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let body = hello.write_to_bytes()?;
    if body.len() > MAX_PREFACE {
        return Err(Error::TooLong(body.len()));
    }
    let mut preface = (body.len() as u16).to_le_bytes().to_vec();
    preface.extend_from_slice(&body);
    connection.write_all(&preface).await?;
    match connection.read_u8().await? {
        ATTACHED => Ok(()),
        _ => Err(Error::Refused),
    }
}

/// Guest side: reads the preface of a fresh connection.
///
/// # Errors
/// [`Error::TooLong`] and [`Error::Malformed`] for what is not a preface.
pub async fn read_request<S>(connection: &mut S) -> Result<StreamHello, Error>
where
    S: AsyncReadExt + Unpin,
{
    let length = usize::from(connection.read_u16_le().await?);
    if length > MAX_PREFACE {
        return Err(Error::TooLong(length));
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(StreamHello::parse_from_bytes(&body)?)
}

/// Guest side: answers the preface.
///
/// # Errors
/// When the connection broke.
pub async fn answer<S>(connection: &mut S, attached: bool) -> Result<(), Error>
where
    S: AsyncWriteExt + Unpin,
{
    let word = if attached { ATTACHED } else { REFUSED };
    Ok(connection.write_u8(word).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> StreamHello {
        StreamHello {
            container_id: "web".into(),
            exec_id: "sh".into(),
            stream: Stream::STDERR.into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn what_the_host_asks_is_what_the_guest_reads() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        let asked = tokio::spawn(async move { request(&mut host, &hello()).await });
        assert_eq!(read_request(&mut guest).await.unwrap(), hello());
        answer(&mut guest, true).await.unwrap();
        asked.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_refusal_reaches_the_host() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        answer(&mut guest, false).await.unwrap();
        assert!(matches!(
            request(&mut host, &hello()).await,
            Err(Error::Refused)
        ));
    }

    #[tokio::test]
    async fn an_endless_preface_is_not_read() {
        let mut bytes: &[u8] = &[0xff, 0xff, 1, 2, 3];
        assert!(matches!(
            read_request(&mut bytes).await,
            Err(Error::TooLong(65535))
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_preface_makes_the_guest_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut input = bytes.as_slice();
            let _ = runtime.block_on(read_request(&mut input));
        }
    }
}
