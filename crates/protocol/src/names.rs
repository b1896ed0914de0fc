//! What is passed on to a name server that runs on the host, in the sandbox's
//! network namespace, and listens at a loopback address there.
//!
//! Each question is a connection of its own, from the guest:
//!
//! ```text
//! guest → host   u8 way: 0 = datagram, 1 = stream; 4 bytes address of the server
//! datagram:      message →, ← message; each is u16 length (big endian) and bytes,
//!                as DNS has them over TCP (RFC 1035, 4.2.2)
//! stream:        bytes both ways, to and from a TCP connection to the server
//! ```

use std::{io, net::Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Port of name servers (RFC 1035, 4.2).
pub const PORT: u16 = 53;

/// How a question came, and is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// UDP: one message, one answer.
    Datagram,
    /// TCP.
    Stream,
}

/// Guest side: says what a fresh connection is for.
///
/// # Errors
/// When the connection broke.
pub async fn ask<S>(connection: &mut S, way: Way, server: Ipv4Addr) -> io::Result<()>
where
    S: AsyncWriteExt + Unpin,
{
    let mut preface = [0; 5];
    preface[0] = (way == Way::Stream).into();
    preface[1..].copy_from_slice(&server.octets());
    connection.write_all(&preface).await
}

/// Host side: reads what [`ask`] has written.
///
/// # Errors
/// InvalidData for a way that does not exist.
pub async fn read_ask<S>(connection: &mut S) -> io::Result<(Way, Ipv4Addr)>
where
    S: AsyncReadExt + Unpin,
{
    let mut preface = [0; 5];
    connection.read_exact(&mut preface).await?;
    let [way, server @ ..] = preface;
    let way = match way {
        0 => Way::Datagram,
        1 => Way::Stream,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((way, server.into()))
}

/// Sends a message of at most 65535 bytes.
///
/// # Errors
/// InvalidInput for a longer one; when the connection broke.
pub async fn send<S>(connection: &mut S, message: &[u8]) -> io::Result<()>
where
    S: AsyncWriteExt + Unpin,
{
    let length = u16::try_from(message.len());
    let length = length.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    connection.write_all(&framed).await
}

/// Receives a message.
///
/// # Errors
/// When the connection broke or ended before.
pub async fn receive<S>(connection: &mut S) -> io::Result<Vec<u8>>
where
    S: AsyncReadExt + Unpin,
{
    let mut message = vec![0; connection.read_u16().await?.into()];
    connection.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_guest_asks_is_what_the_host_reads() {
        for (way, address) in [
            (Way::Datagram, [127, 0, 0, 11]),
            (Way::Stream, [127, 1, 2, 3]),
        ] {
            let (mut guest, mut host) = tokio::io::duplex(1024);
            ask(&mut guest, way, address.into()).await.unwrap();
            send(&mut guest, b"question").await.unwrap();
            assert_eq!(read_ask(&mut host).await.unwrap(), (way, address.into()));
            assert_eq!(receive(&mut host).await.unwrap(), b"question");
        }
    }

    #[tokio::test]
    async fn what_is_no_question_is_refused() {
        let mut bytes: &[u8] = &[2, 127, 0, 0, 11];
        assert!(read_ask(&mut bytes).await.is_err());
        let mut short: &[u8] = &[0, 9, 1];
        assert!(receive(&mut short).await.is_err());
        assert!(send(&mut Vec::new(), &vec![0; 1 << 16]).await.is_err());
    }
}
