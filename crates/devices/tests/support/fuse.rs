//! A FUSE client over the file server's virtqueues (virtio 1.2, 5.11).

use std::path::Path;
use std::time::{Duration, Instant};

use super::process::{FrontEnd, shared_memory};
use super::ring::{Buffer, Ring};

pub const ROOT: u64 = 1;

const LOOKUP: u32 = 1;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const CREATE: u32 = 35;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
const REPLY_LEN: u32 = 0x1_0000;
/// `FUSE_ATTR_SUBMOUNT`
pub const ATTR_SUBMOUNT: u32 = 1;

/// What the server says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub node: u64,
    pub inode: u64,
    pub mode: u32,
    pub flags: u32,
}

/// A mounted client.
pub struct Fuse {
    front_end: FrontEnd,
    queue: Ring,
    unique: u64,
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

impl Fuse {
    pub fn mount(socket: &Path) -> Fuse {
        let memory = shared_memory();
        let priority = Ring::new(&memory, 0x1_0000, 64, true);
        let queue = Ring::new(&memory, 0x2_0000, 64, true);
        let front_end = FrontEnd::connect(socket, &memory, &[&priority, &queue]);
        let mut fuse = Fuse {
            front_end,
            queue,
            unique: 0,
        };
        // ASYNC_READ … INIT_EXT, DO_READDIRPLUS, HANDLE_KILLPRIV_V2, SUBMOUNTS
        let flags: u32 = 1 | 1 << 13 | 1 << 27 | 1 << 28 | 1 << 30;
        let mut init = words(&[7, 36, 65536, flags, 0]);
        init.resize(64, 0);
        fuse.call(INIT, 0, &init).expect("the server accepts INIT");
        fuse
    }

    /// One request; the body of the reply, or the errno.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let mut request = words(&[(IN_HEADER + body.len()) as u32, opcode]);
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(words(&[0, 0, 1, 0]));
        request.extend(body);
        self.queue.write(REQUEST, &request);
        let (_, kick) = self.queue.offer(&[
            Buffer {
                address: REQUEST,
                len: request.len() as u32,
                writable: false,
            },
            Buffer {
                address: REPLY,
                len: REPLY_LEN,
                writable: true,
            },
        ]);
        if kick {
            self.front_end.kicks[1].write(1).unwrap();
        }
        let start = Instant::now();
        let written = loop {
            if let Some((_, written)) = self.queue.take_used() {
                break written as usize;
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "no reply to {opcode}"
            );
            std::thread::yield_now();
        };
        let reply = self.queue.read(REPLY, written);
        let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
        if error == 0 {
            Ok(reply[OUT_HEADER..].to_vec())
        } else {
            Err(-error)
        }
    }

    fn entry(reply: &[u8]) -> Entry {
        let long = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        // struct fuse_entry_out: 40 bytes, then struct fuse_attr.
        Entry {
            node: long(0),
            inode: long(40),
            mode: word(40 + 60),
            flags: word(40 + 84),
        }
    }

    pub fn lookup(&mut self, parent: u64, path: &str) -> Result<Entry, i32> {
        self.call(LOOKUP, parent, &name(path))
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn mkdir(&mut self, parent: u64, path: &str) -> Result<Entry, i32> {
        let body = [words(&[0o755, 0]), name(path)].concat();
        self.call(MKDIR, parent, &body)
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn mknod(&mut self, parent: u64, path: &str, mode: u32, device: u32) -> Result<Entry, i32> {
        let body = [words(&[mode, device, 0, 0]), name(path)].concat();
        self.call(MKNOD, parent, &body)
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn create(&mut self, parent: u64, path: &str) -> Result<Entry, i32> {
        let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
        let body = [words(&[flags, 0o644, 0, 0]), name(path)].concat();
        self.call(CREATE, parent, &body)
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn symlink(&mut self, parent: u64, path: &str, target: &str) -> Result<Entry, i32> {
        let body = [name(path), name(target)].concat();
        self.call(SYMLINK, parent, &body)
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn link(&mut self, node: u64, parent: u64, path: &str) -> Result<Entry, i32> {
        let body = [node.to_le_bytes().to_vec(), name(path)].concat();
        self.call(LINK, parent, &body)
            .map(|reply| Fuse::entry(&reply))
    }

    pub fn rename(&mut self, parent: u64, from: &str, to: &str) -> Result<(), i32> {
        let body = [parent.to_le_bytes().to_vec(), name(from), name(to)].concat();
        self.call(RENAME, parent, &body).map(drop)
    }

    pub fn unlink(&mut self, parent: u64, path: &str) -> Result<(), i32> {
        self.call(UNLINK, parent, &name(path)).map(drop)
    }

    pub fn rmdir(&mut self, parent: u64, path: &str) -> Result<(), i32> {
        self.call(RMDIR, parent, &name(path)).map(drop)
    }

    pub fn read(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let opened = self.call(OPEN, node, &words(&[0, 0]))?;
        let handle = opened[..8].to_vec();
        let mut body = [handle, vec![0; 8], words(&[4096, 0])].concat();
        body.resize(40, 0);
        self.call(READ, node, &body)
    }
}
