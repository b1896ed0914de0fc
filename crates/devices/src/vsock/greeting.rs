//! The line with which a client on the host asks for a guest port.
//!
//! Firecracker's convention: `CONNECT <port>\n`, answered by `OK <port>\n`
//! with the port the host side of the connection was given.

/// The longest greeting: the verb, ten digits, the line feed.
pub const GREETING_MAX: usize = "CONNECT 4294967295\n".len();

/// What the first bytes of a client say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// The line is not complete.
    Incomplete,
    /// It asks for this port; the line takes this many bytes.
    Connect {
        /// The guest's port.
        port: u32,
        /// Length of the line with its line feed.
        len: usize,
    },
    /// Not a greeting.
    Malformed,
}

impl Greeting {
    /// Judges the bytes received so far. Bytes behind the line are payload.
    pub fn parse(bytes: &[u8]) -> Greeting {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return if bytes.len() < GREETING_MAX {
                Greeting::Incomplete
            } else {
                Greeting::Malformed
            };
        };
        match port(&bytes[..end]) {
            Some(port) => Greeting::Connect { port, len: end + 1 },
            None => Greeting::Malformed,
        }
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The line that tells a client of its connection.
pub fn answer(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn judges_lines() {
        assert_eq!(Greeting::parse(b""), Greeting::Incomplete);
        assert_eq!(Greeting::parse(b"CONNECT 52"), Greeting::Incomplete);
        assert_eq!(
            Greeting::parse(b"CONNECT 4294967295\n"),
            Greeting::Connect {
                port: u32::MAX,
                len: GREETING_MAX
            }
        );
        for bad in [
            &b"\n"[..],
            b"CONNECT \n",
            b"CONNECT +5\n",
            b"CONNECT -5\n",
            b"CONNECT 5 \n",
            b"connect 5\n",
            b"CONNECT 4294967296\n",
            b"GET / HTTP/1.1\r\nHost",
            b"CONNECT 99999999999",
        ] {
            assert_eq!(Greeting::parse(bad), Greeting::Malformed, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn finds_the_line_whatever_follows(wanted in any::<u32>(), tail in prop::collection::vec(any::<u8>(), 0..40)) {
            let line = format!("CONNECT {wanted}\n");
            let mut bytes = line.clone().into_bytes();
            bytes.extend(tail);
            prop_assert_eq!(Greeting::parse(&bytes), Greeting::Connect { port: wanted, len: line.len() });
            for cut in 0..line.len() {
                prop_assert_eq!(Greeting::parse(&bytes[..cut]), Greeting::Incomplete);
            }
        }

        #[test]
        fn never_waits_for_more_than_a_line(bytes in prop::collection::vec(any::<u8>(), GREETING_MAX..64)) {
            prop_assert_ne!(Greeting::parse(&bytes), Greeting::Incomplete);
        }
    }
}
