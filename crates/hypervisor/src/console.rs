//! The guest's console output: kept in a file that never grows beyond its
//! limit, however much the guest writes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt, unix::net::UnixStream as StdStream},
    path::PathBuf,
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::UnixStream};

use crate::{ConsoleLog, Error};

/// What is read at once, and per [`PAUSE`] at most: a guest that writes without
/// end is held back by its full console instead of keeping the host busy.
const CHUNK: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(10);

/// How much is kept in memory, to tell why the guest ended.
const TAIL: usize = 4096;

/// Makes the log and the socket that the machine writes to.
pub(crate) fn open(settings: &ConsoleLog) -> Result<(Console, OwnedFd), Error> {
    let failed = |source| Error::File {
        what: "console log",
        path: settings.path.clone(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&settings.path)
        .map_err(failed)?;
    let (ours, theirs) = StdStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let console = Console {
        socket: UnixStream::from_std(ours).map_err(failed)?,
        log: BoundedFile {
            file,
            length: 0,
            limit: settings.limit_bytes,
        },
        path: settings.path.clone(),
        tail: Tail::default(),
    };
    Ok((console, theirs.into()))
}

/// The host's side of the console.
pub(crate) struct Console {
    socket: UnixStream,
    log: BoundedFile,
    path: PathBuf,
    tail: Tail,
}

impl Console {
    /// Copies until the machine has closed its side; returns the end of the output.
    pub(crate) async fn copy(mut self) -> Vec<u8> {
        let mut chunk = vec![0; CHUNK];
        let mut writable = true;
        loop {
            let count = match self.socket.read(&mut chunk).await {
                Ok(0) | Err(_) => return self.tail.0,
                Ok(count) => count,
            };
            self.tail.push(&chunk[..count]);
            if writable && let Err(error) = self.log.append(&chunk[..count]) {
                // The guest goes on without its log rather than not at all.
                tracing::warn!(path = %self.path.display(), %error, "console log abandoned");
                writable = false;
            }
            if count == CHUNK {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The last bytes of a stream.
#[derive(Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(TAIL);
        self.0.drain(..surplus);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A file that holds the newest bytes: when it is full, its older half goes.
struct BoundedFile {
    file: File,
    length: u64,
    limit: u64,
}

impl BoundedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let surplus = (bytes.len() as u64).saturating_sub(self.limit);
        let bytes = &bytes[surplus as usize..];
        let length = bytes.len() as u64;
        if self.length + length > self.limit {
            self.keep((self.limit / 2).min(self.limit - length))?;
        }
        self.file.write_all(bytes)?;
        self.length += length;
        Ok(())
    }

    /// Drops all but the last `count` bytes.
    fn keep(&mut self, count: u64) -> io::Result<()> {
        let count = count.min(self.length);
        let mut kept = vec![0; count as usize];
        self.file.seek(SeekFrom::Start(self.length - count))?;
        self.file.read_exact(&mut kept)?;
        self.file.rewind()?;
        self.file.write_all(&kept)?;
        self.file.set_len(count)?;
        self.length = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn bounded(path: &Path, limit: u64) -> BoundedFile {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .unwrap();
        BoundedFile {
            file,
            length: 0,
            limit,
        }
    }

    proptest! {
        #[test]
        fn the_file_is_a_suffix_within_its_limit(
            limit in 1_u64..64,
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let mut log = bounded(&path, limit);
            let mut all = Vec::new();
            for bytes in &writes {
                log.append(bytes).unwrap();
                all.extend_from_slice(bytes);
                let content = std::fs::read(&path).unwrap();
                prop_assert!(content.len() as u64 <= limit);
                prop_assert!(all.ends_with(&content));
                prop_assert!(content.len() as u64 >= (limit / 2).min(all.len() as u64));
            }
        }
    }

    #[tokio::test]
    async fn output_is_copied_until_the_guest_closes() {
        let directory = tempfile::tempdir().unwrap();
        let settings = ConsoleLog {
            path: directory.path().join("console.log"),
            limit_bytes: 10_000,
        };
        let (console, guest) = open(&settings).unwrap();
        let mut guest = StdStream::from(guest);
        let writer = std::thread::spawn(move || {
            for line in 0..20_000 {
                writeln!(guest, "line {line}").unwrap();
            }
        });
        let tail = console.copy().await;
        writer.join().unwrap();
        assert!(tail.ends_with(b"line 19998\nline 19999\n"));
        let log = std::fs::read(&settings.path).unwrap();
        assert!(log.len() <= 10_000 && log.ends_with(&tail));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_made_is_named() {
        let settings = ConsoleLog {
            path: "/no/such/directory/console.log".into(),
            limit_bytes: 1,
        };
        let error = open(&settings).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("console log /no/such/directory/console.log: No such file"));
    }
}
