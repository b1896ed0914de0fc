//! One call of a gRPC service over a Unix socket: gRPC over HTTP/2,
//! PROTOCOL-HTTP2.md of the gRPC project.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// What a service says when it cannot do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{method}: {message} (gRPC code {code})")]
pub struct Refusal {
    /// The method.
    pub method: String,
    /// One of gRPC's codes, `grpc/codes`.
    pub code: u32,
    /// The reason.
    pub message: String,
}

/// Compressed flag and length before each message.
const PREFIX: usize = 5;

/// Calls `method`, `package.Service/Method`, on a connection of its own: the
/// server may have been started anew since the last call.
pub(super) fn call<A: Message>(
    socket: &Path,
    method: &str,
    request: &impl Message,
    limit: Duration,
) -> Result<A> {
    let body = framed(&request.write_to_bytes()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exchange = async {
        timeout(limit, exchange(socket, method, body))
            .await
            .with_context(|| format!("{method}: no answer within {limit:?}"))?
    };
    let answer = runtime.block_on(exchange)?;
    A::parse_from_bytes(&answer).with_context(|| format!("the answer of {method}"))
}

async fn exchange(socket: &Path, method: &str, body: Bytes) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| socket.display().to_string())?;
    let (client, connection) = client::handshake(stream).await?;
    tokio::spawn(connection);
    converse(client, method, body)
        .await
        .with_context(|| method.to_owned())
}

async fn converse(client: SendRequest<Bytes>, method: &str, body: Bytes) -> Result<Bytes> {
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut sender) = client.ready().await?.send_request(request, false)?;
    sender.send_data(body, true)?;
    let (head, mut stream) = answer.await?.into_parts();
    ensure!(head.status.is_success(), "HTTP status {}", head.status);
    // A refusal may come without a body, its status among the headers.
    if head.headers.contains_key("grpc-status") {
        judge(method, &head.headers)?;
    }
    let answer = received(&mut stream).await?;
    let trailers = stream.trailers().await?.context("no status")?;
    judge(method, &trailers)?;
    unframed(answer)
}

async fn received(stream: &mut RecvStream) -> Result<BytesMut> {
    let mut bytes = BytesMut::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        bytes.put(part);
    }
    Ok(bytes)
}

fn judge(method: &str, headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status").context("no status")?.parse()?;
    if code == 0 {
        return Ok(());
    }
    bail!(Refusal {
        method: method.to_owned(),
        code,
        message: decoded(text("grpc-message").unwrap_or_default()),
    })
}

/// Undoes the percent-encoding of a status message.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let value = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match value.filter(|_| first == b'%') {
            Some(value) => (bytes.push(value), rest = &tail[2..]),
            None => (bytes.push(first), rest = tail),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

fn unframed(mut frame: BytesMut) -> Result<Bytes> {
    ensure!(frame.len() >= PREFIX, "no message in the answer");
    ensure!(frame.get_u8() == 0, "a compressed answer");
    let length = frame.get_u32() as usize;
    ensure!(frame.len() == length, "half a message in the answer");
    Ok(frame.freeze())
}
