//! The streams of exec, attach and port-forward, as a kubelet has them: SPDY
//! 3.1 after an upgrade of HTTP. Unlike the WebSocket form it can end an input.
//!
//! Only what a client needs: it opens streams and sends, and a thread takes
//! what comes. Blocks of headers are sent uncompressed, which zlib allows, and
//! those that come are not read: the answer to a stream is its data.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Control frames that matter: SPDY 3.1, 2.6.
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
/// Control frames begin so.
const CONTROL: u16 = 0x8003;
/// The last frame of a direction.
const FIN: u8 = 1;

/// What has come on one stream.
#[derive(Clone, Default)]
struct Incoming {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Arrivals {
    streams: Mutex<HashMap<u32, Incoming>>,
    changed: Condvar,
}

/// A connection that carries streams.
pub(super) struct Spdy {
    connection: Arc<Mutex<TcpStream>>,
    arrivals: Arc<Arrivals>,
    next: u32,
    /// Whether a block of headers has been sent: the first begins zlib's format.
    begun: bool,
}

impl Spdy {
    /// Asks for `path` and for a change to SPDY with what is spoken on top.
    pub(super) fn upgrade(mut connection: TcpStream, path: &str, protocol: &str) -> Result<Spdy> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        connection.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(connection.try_clone()?);
        let head = head(&mut reader)?;
        ensure!(
            head.starts_with("HTTP/1.1 101 "),
            "no streams by {path}: {head}"
        );
        let spdy = Spdy {
            connection: Arc::new(Mutex::new(connection)),
            arrivals: Arc::default(),
            next: 1,
            begun: false,
        };
        let (arrivals, back) = (Arc::clone(&spdy.arrivals), Arc::clone(&spdy.connection));
        thread::spawn(move || {
            // The end of the connection is the end of its streams, however it came.
            let _ = take(&mut reader, &arrivals, &back);
            let mut streams = arrivals.lock();
            streams.values_mut().for_each(|stream| stream.ended = true);
            arrivals.changed.notify_all();
        });
        Ok(spdy)
    }

    /// Opens a stream with these headers and gives its number.
    pub(super) fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let stream = self.next;
        // A client's are odd.
        self.next += 2;
        self.arrivals.lock().insert(stream, Incoming::default());
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut body = stream.to_be_bytes().to_vec();
        // Associated with none, of the highest priority.
        body.extend([0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            // RFC 1950, 2.2: deflate, and no dictionary.
            body.extend([0x78, 0x01]);
        }
        // RFC 1951, 3.2.4: a block that is stored as it is, and is not the last.
        let length = u16::try_from(plain.len())?;
        body.push(0);
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.extend(plain);
        // An empty one after it, without which who unpacks waits for more.
        body.extend([0, 0, 0, 0xff, 0xff]);
        let kind = u32::from(CONTROL) << 16 | u32::from(SYN_STREAM);
        send(&self.connection, kind, 0, &body)?;
        Ok(stream)
    }

    /// Sends bytes on a stream.
    pub(super) fn send(&self, stream: u32, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(1 << 15)
            .try_for_each(|part| send(&self.connection, stream, 0, part))
    }

    /// Ends this side of a stream.
    pub(super) fn end(&self, stream: u32) -> Result<()> {
        send(&self.connection, stream, FIN, &[])
    }

    /// What has come so far.
    pub(super) fn received(&self, stream: u32) -> Vec<u8> {
        let streams = self.arrivals.lock();
        streams
            .get(&stream)
            .map(|stream| stream.bytes.clone())
            .unwrap_or_default()
    }

    /// Waits until what has come on a stream is enough, or all there will be.
    /// Says whether it is enough.
    pub(super) fn wait(
        &self,
        stream: u32,
        limit: Duration,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut streams = self.arrivals.lock();
        loop {
            let incoming = streams.get(&stream).context("no such stream")?;
            if enough(&incoming.bytes) {
                return Ok(true);
            }
            if incoming.ended {
                return Ok(false);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let text = String::from_utf8_lossy(&incoming.bytes).into_owned();
                bail!("after {limit:?} a stream has neither ended nor brought enough: {text:?}");
            };
            let waited = self.arrivals.changed.wait_timeout(streams, left);
            streams = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of a stream and gives all that came.
    pub(super) fn whole(&self, stream: u32, limit: Duration) -> Result<Vec<u8>> {
        self.wait(stream, limit, |_| false)?;
        Ok(self.received(stream))
    }
}

impl Drop for Spdy {
    fn drop(&mut self) {
        // The thread that reads ends by this.
        let connection = self.connection.lock();
        let connection = connection.unwrap_or_else(PoisonError::into_inner);
        let _ = connection.shutdown(Shutdown::Both);
    }
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Incoming>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, stream: u32, bytes: &[u8], ended: bool) {
        if let Some(incoming) = self.lock().get_mut(&stream) {
            incoming.bytes.extend(bytes);
            incoming.ended |= ended;
        }
        self.changed.notify_all();
    }
}

/// One frame: its first word, flags and length in the second, its body.
fn send(connection: &Mutex<TcpStream>, first: u32, flags: u8, body: &[u8]) -> Result<()> {
    let mut frame = first.to_be_bytes().to_vec();
    frame.extend((u32::from(flags) << 24 | body.len() as u32).to_be_bytes());
    frame.extend(body);
    let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(connection.write_all(&frame)?)
}

/// The head of the answer to the upgrade.
fn head(reader: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).context("no answer")?;
        head.push(byte[0]);
        ensure!(head.len() < 1 << 14, "an answer without end");
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Takes frames until the connection ends.
fn take(reader: &mut impl Read, arrivals: &Arrivals, back: &Mutex<TcpStream>) -> Result<()> {
    let word = |reader: &mut dyn Read| -> Result<u32> {
        let mut word = [0; 4];
        reader.read_exact(&mut word)?;
        Ok(u32::from_be_bytes(word))
    };
    loop {
        let (first, second) = (word(reader)?, word(reader)?);
        let (flags, length) = ((second >> 24) as u8, second & 0xff_ffff);
        let mut body = vec![0; length as usize];
        reader.read_exact(&mut body)?;
        if (first >> 16) as u16 != CONTROL {
            arrivals.put(first, &body, flags & FIN != 0);
            continue;
        }
        let number = body.first_chunk().map(|four| u32::from_be_bytes(*four));
        match (first as u16, number) {
            (RST_STREAM, Some(stream)) => arrivals.put(stream, &[], true),
            // Whoever gets one sends it back.
            (PING, Some(_)) => send(back, first, 0, &body)?,
            _ => {}
        }
    }
}
