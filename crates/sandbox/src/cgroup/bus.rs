//! Two calls to systemd over D-Bus (D-Bus specification 0.38), without a bus:
//! root reaches systemd's own socket. The libraries for this are larger than the
//! runtime.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// systemd's own socket, for root alone.
const SOCKET: &str = "/run/systemd/private";

/// How long systemd may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest answer that is read: ours are a path or one line.
const MAX_ANSWER: usize = 64 << 10;

const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// Types of messages, and codes of header fields.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH_FIELD: u8 = 1;
const INTERFACE_FIELD: u8 = 2;
const MEMBER_FIELD: u8 = 3;
const ERROR_NAME_FIELD: u8 = 4;
const SIGNATURE_FIELD: u8 = 8;

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The conversation.
    #[error("{SOCKET}: {0}")]
    Io(#[from] io::Error),
    /// Its refusal: the name of the error, and what it says.
    #[error("{text} ({name})")]
    Refused {
        /// "org.freedesktop.systemd1.NoSuchUnit" and the like.
        name: String,
        /// For people.
        text: String,
    },
}

/// The value of a unit's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Processes(Vec<u32>),
}

pub(super) type Property = (&'static str, Value);

/// StartTransientUnit.
///
/// # Errors
/// When systemd does not answer, or refuses.
pub(super) fn start_unit(name: &str, properties: &[Property]) -> Result<(), Error> {
    let mut body = Body::default();
    body.text(name);
    body.text("fail");
    body.properties(properties);
    // No other units.
    body.number(0);
    body.align(8);
    call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)
}

/// SetUnitProperties, for as long as the unit lives.
///
/// # Errors
/// As [`start_unit`].
pub(super) fn set_properties(name: &str, properties: &[Property]) -> Result<(), Error> {
    let mut body = Body::default();
    body.text(name);
    body.number(1);
    body.properties(properties);
    call("SetUnitProperties", "sba(sv)", &body)
}

/// StopUnit. One that has gone is no error.
///
/// # Errors
/// As [`start_unit`].
pub(super) fn stop_unit(name: &str) -> Result<(), Error> {
    let mut body = Body::default();
    body.text(name);
    body.text("replace");
    match call("StopUnit", "ss", &body) {
        Err(Error::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
        other => other,
    }
}

fn call(member: &str, signature: &str, body: &Body) -> Result<(), Error> {
    let mut systemd = UnixStream::connect(SOCKET)?;
    systemd.set_read_timeout(Some(PATIENCE))?;
    systemd.set_write_timeout(Some(PATIENCE))?;
    authenticate(&mut systemd)?;
    systemd.write_all(&message(member, signature, body))?;
    loop {
        match answer(&mut systemd)? {
            (METHOD_RETURN, ..) => return Ok(()),
            (ERROR, name, text) => return Err(Error::Refused { name, text }),
            // Signals.
            _ => {}
        }
    }
}

/// "Authentication Protocol": as the user that we are, which is root. All of it
/// goes at once: systemd does not look at a message that comes together with
/// BEGIN before something else comes.
fn authenticate(systemd: &mut UnixStream) -> io::Result<()> {
    let user = nix::unistd::geteuid().to_string();
    let user: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
    systemd.write_all(format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < 256 {
        let mut byte = [0];
        systemd.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    match line.starts_with(b"OK ") {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// "Message Format", in little endian.
fn message(member: &str, signature: &str, body: &Body) -> Vec<u8> {
    let mut fields = Body::default();
    for (code, kind, value) in [
        (PATH_FIELD, "o", OBJECT),
        (INTERFACE_FIELD, "s", INTERFACE),
        (MEMBER_FIELD, "s", member),
        (SIGNATURE_FIELD, "g", signature),
    ] {
        fields.align(8);
        fields.0.push(code);
        fields.signature(kind);
        match kind {
            "g" => fields.signature(value),
            _ => fields.text(value),
        }
    }
    let mut message = Body(vec![b'l', METHOD_CALL, 0, 1]);
    message.number(body.0.len() as u32);
    message.number(1);
    message.number(fields.0.len() as u32);
    message.0.extend(fields.0);
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// The next message: its type, the name of an error, and its first text.
fn answer(systemd: &mut impl Read) -> io::Result<(u8, String, String)> {
    let mut head = [0; 16];
    systemd.read_exact(&mut head)?;
    let number = |at: usize| {
        let word = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        u32::from_le_bytes(word) as usize
    };
    let (body, fields) = (number(4), number(12));
    if head[0] != b'l' || body > MAX_ANSWER || fields > MAX_ANSWER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut rest = vec![0; fields.next_multiple_of(8) + body];
    systemd.read_exact(&mut rest)?;
    let (fields, body) = rest.split_at(fields.next_multiple_of(8));
    let text = match head[1] {
        ERROR => text_at(body, 0).unwrap_or_default(),
        _ => String::new(),
    };
    Ok((head[1], error_name(fields).unwrap_or_default(), text))
}

/// The field with the name of the error; those before it are texts and numbers.
fn error_name(fields: &[u8]) -> Option<String> {
    let mut at = 0_usize;
    loop {
        at = at.next_multiple_of(8);
        let code = *fields.get(at)?;
        let kind = *fields.get(at + 2)?;
        // Code, then a signature of one letter: length, letter, zero.
        at += 4;
        match kind {
            b's' | b'o' => {
                let text = text_at(fields, at)?;
                if code == ERROR_NAME_FIELD {
                    return Some(text);
                }
                at += 4 + text.len() + 1;
            }
            b'u' => at += 4,
            b'g' => at += usize::from(*fields.get(at)?) + 2,
            _ => return None,
        }
    }
}

fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
    let text = bytes.get(at + 4..at.checked_add(4)?.checked_add(length)?)?;
    let text = String::from_utf8_lossy(text);
    Some(text.chars().filter(|c| !c.is_control()).collect())
}

/// Values as they travel ("Marshaling"): each aligned to its size.
#[derive(Debug, Default)]
struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array of a(sv); its length does not count what aligns its first one.
    fn properties(&mut self, properties: &[Property]) {
        self.number(0);
        let length = self.0.len() - 4;
        self.align(8);
        let begin = self.0.len();
        for (name, value) in properties {
            self.align(8);
            self.text(name);
            self.variant(value);
        }
        let count = (self.0.len() - begin) as u32;
        self.0[length..length + 4].copy_from_slice(&count.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Flag(flag) => {
                self.signature("b");
                self.number((*flag).into());
            }
            Value::Number(number) => {
                self.signature("t");
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Processes(pids) => {
                self.signature("au");
                self.number(pids.len() as u32 * 4);
                pids.iter().for_each(|pid| self.number(*pid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_laid_out_as_the_specification_says() {
        let mut body = Body::default();
        body.properties(&[
            ("A", Value::Number(7)),
            ("PIDs", Value::Processes(vec![258])),
        ]);
        let expected: &[u8] = &[
            44, 0, 0, 0, 0, 0, 0, 0, // length, and up to the first struct
            1, 0, 0, 0, b'A', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, // name, signature
            7, 0, 0, 0, 0, 0, 0, 0, //
            4, 0, 0, 0, b'P', b'I', b'D', b's', 0, 2, b'a', b'u', 0, 0, 0, 0, //
            4, 0, 0, 0, 2, 1, 0, 0,
        ];
        assert_eq!(body.0[4..], expected[4..]);
        assert_eq!(
            u32::from_le_bytes(*body.0.first_chunk().unwrap()) as usize,
            body.0.len() - 8
        );
    }

    #[test]
    fn an_error_has_a_name_and_a_text() {
        let mut fields = Body::default();
        for (code, kind, value) in [(5_u8, "u", ""), (ERROR_NAME_FIELD, "s", "a.NoSuchUnit")] {
            fields.align(8);
            fields.0.push(code);
            fields.signature(kind);
            match kind {
                "u" => fields.number(1),
                _ => fields.text(value),
            }
        }
        let mut body = Body::default();
        body.text("Unit x not loaded.");
        let mut message = Body(vec![b'l', ERROR, 1, 1]);
        message.number(body.0.len() as u32);
        message.number(9);
        message.number(fields.0.len() as u32);
        message.0.extend(&fields.0);
        message.align(8);
        message.0.extend(&body.0);
        let (kind, name, text) = answer(&mut message.0.as_slice()).unwrap();
        assert_eq!((kind, name.as_str()), (ERROR, "a.NoSuchUnit"));
        assert_eq!(text, "Unit x not loaded.");
        for end in 0..message.0.len() {
            assert!(answer(&mut &message.0[..end]).is_err(), "{end}");
        }
    }
}
