//! Messages: a header, a fixed part, attributes that may hold attributes
//! (netlink(7), netlink(3)).

use std::io;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in an attribute's kind.
const KIND: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// A message to the kernel, put together from front to back.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// One of a kind (RTM_*) with flags (NLM_F_*) besides those that every
    /// request has.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    /// Adds the fixed part, or what stands for a whole body.
    #[must_use]
    pub fn header(mut self, header: &[u8]) -> Self {
        self.bytes.extend(header);
        self.pad()
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = (ATTRIBUTE + payload.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(payload);
        self.pad()
    }

    /// Adds an attribute that holds a number.
    #[must_use]
    pub fn number(self, kind: u16, number: u32) -> Self {
        self.attribute(kind, &number.to_ne_bytes())
    }

    /// Adds an attribute that holds attributes.
    #[must_use]
    pub fn nested(self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let begin = self.bytes.len();
        let mut filled = fill(self.attribute(kind | NESTED, &[]));
        filled.set_length(begin);
        filled
    }

    /// Adds a structure that holds attributes behind its own fields and begins
    /// with its length in two bytes, such as `struct rtnexthop`.
    #[must_use]
    pub fn structure(mut self, fields: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let begin = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(fields);
        let mut filled = fill(self.pad());
        filled.set_length(begin);
        filled
    }

    fn set_length(&mut self, begin: usize) {
        let length = (self.bytes.len() - begin) as u16;
        self.bytes[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(mut self) -> Self {
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    pub(super) fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = (self.bytes.len() as u32).to_ne_bytes();
        self.bytes[..4].copy_from_slice(&length);
        let own = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(own | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// RTM_*.
    pub kind: u16,
    /// The fixed part and the attributes.
    pub body: Vec<u8>,
}

impl Message {
    /// The attributes behind a fixed part of this length.
    pub fn attributes(&self, header: usize) -> Attributes<'_> {
        attributes(self.body.get(header..).unwrap_or_default())
    }
}

/// The attributes in these bytes.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

/// Kind and payload of one attribute after the other. Ends at what is none.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & KIND;
        let payload = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

/// Takes one message from the front of what was received.
pub(super) fn split<'a>(bytes: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let head = bytes.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let header = Header {
        kind: u16::from_ne_bytes([head[4], head[5]]),
        flags: u16::from_ne_bytes([head[6], head[7]]),
        sequence: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
    };
    let body = bytes.get(HEADER..length)?;
    *bytes = bytes.get(aligned(length)..).unwrap_or_default();
    Some((header, body))
}

/// What `struct nlmsgerr` says: 0 is the acknowledgement.
pub(super) fn verdict(body: &[u8]) -> io::Result<()> {
    let number = body
        .first_chunk()
        .map_or(-libc::EIO, |n| i32::from_ne_bytes(*n));
    match number {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(-number)),
    }
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let request = Request::new(16, 0)
            .header(&[9; 6])
            .attribute(3, b"eth0\0")
            .nested(18, |inside| inside.number(1, 7).attribute(2, b"x"));
        let bytes = request.finish(4, 77);
        let mut rest = bytes.as_slice();
        let (header, body) = split(&mut rest).unwrap();
        assert_eq!((header.kind, header.flags, header.sequence), (16, 5, 77));
        assert!(rest.is_empty());
        let message = Message {
            kind: header.kind,
            body: body.to_vec(),
        };
        let list: Vec<_> = message.attributes(8).collect();
        assert_eq!(list[0], (3, b"eth0\0".as_slice()));
        assert_eq!(list[1].0, 18);
        let inside: Vec<_> = attributes(list[1].1).collect();
        assert_eq!(
            inside,
            [(1, 7_u32.to_ne_bytes().as_slice()), (2, b"x".as_slice())]
        );
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        for bytes in [
            &[][..],
            &[8, 0, 1],
            &[8, 0, 1, 0, 5],
            &[3, 0, 1, 0],
            &[0; 4],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert!(split(&mut [0_u8; 15].as_slice()).is_none());
        assert!(split(&mut [255_u8; 20].as_slice()).is_none());
        assert!(verdict(&[]).is_err());
    }
}
