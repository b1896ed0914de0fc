//! Reads a stream of a command to its end, beside the scenario.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::processes;

type Bytes = Arc<Mutex<Vec<u8>>>;

pub(super) struct Collector {
    bytes: Bytes,
    reader: JoinHandle<()>,
    inode: String,
}

impl Collector {
    pub(super) fn start(stream: impl Read + AsFd + Send + 'static) -> Collector {
        let link = format!("/proc/self/fd/{}", stream.as_fd().as_raw_fd());
        let inode = fs::read_link(link)
            .map(|target| target.to_string_lossy().into_owned())
            .unwrap_or_default();
        Collector::named(stream, inode)
    }

    /// Of a stream that others hold under another name than the descriptor's.
    pub(super) fn named(stream: impl Read + Send + 'static, inode: String) -> Collector {
        let bytes = Bytes::default();
        let into = Arc::clone(&bytes);
        let reader = thread::spawn(move || read_all(stream, &into));
        Collector {
            bytes,
            reader,
            inode,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    /// Waits for the end of the stream, or names who holds it open.
    pub(super) fn ended_within(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        while !self.reader.is_finished() {
            if Instant::now() > deadline {
                let holders = processes::holders(&self.inode);
                let lines: Vec<String> = holders.iter().map(ToString::to_string).collect();
                return Err(lines.join("; "));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn read_all(mut stream: impl Read, into: &Bytes) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            return;
        }
        lock(into).extend_from_slice(&chunk[..count]);
    }
}

fn lock(bytes: &Bytes) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}
