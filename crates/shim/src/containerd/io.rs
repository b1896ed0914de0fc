//! The streams of a process as containerd names them: FIFOs that its client has
//! made, files, or a logging program.
//!
//! Both ends of a FIFO are held here. A client that goes and comes back, as
//! containerd does when it is restarted, is no end of a stream then: output
//! waits in the FIFO, and input ends when the client says so (CloseIO).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use casemate_linux::view::View;
use casemate_sandbox::stdio::Stdio;

use super::logger::{self, Subject};

/// What containerd has said about the streams of a process. An empty address is
/// a stream that nobody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Addresses {
    /// Those that the process has. With a terminal there is one output, and yet
    /// containerd's CRI names two.
    pub(crate) fn of_process(self, terminal: bool) -> Self {
        match terminal {
            true => Self {
                stderr: String::new(),
                ..self
            },
            false => self,
        }
    }
}

/// The open streams of a process.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdio: Stdio,
    /// Keeps the process's input from ending; dropped when the client says that
    /// it ends.
    pub(super) held: Option<OwnedFd>,
}

/// A stream that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such way.
    #[error("stream {0:?}: a FIFO, file:// or binary:// is meant")]
    Unknown(String),
    /// The system says no.
    #[error("stream {address:?}: {source}")]
    Io {
        /// As containerd has written it.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A stream's address, understood.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// A FIFO, or whatever else is at this path.
    Path(&'a Path),
    /// A file that is written at its end, and made if there is none.
    File(&'a Path),
    /// A logging program.
    Program(&'a str),
}

impl<'a> Way<'a> {
    fn of(address: &'a str) -> Result<Option<Self>, Error> {
        let Some((scheme, rest)) = address.split_once("://") else {
            return match address {
                "" => Ok(None),
                path if path.starts_with('/') => Ok(Some(Self::Path(path.as_ref()))),
                other => Err(Error::Unknown(other.to_owned())),
            };
        };
        match scheme {
            "fifo" => Ok(Some(Self::Path(rest.as_ref()))),
            "file" => Ok(Some(Self::File(rest.as_ref()))),
            "binary" => Ok(Some(Self::Program(rest))),
            _ => Err(Error::Unknown(address.to_owned())),
        }
    }
}

fn failed(address: &str) -> impl FnOnce(io::Error) -> Error {
    let address = address.to_owned();
    move |source| Error::Io { address, source }
}

/// Opens the streams of a process, whose paths are seen in `view`. Never waits
/// for the other end of a FIFO.
///
/// # Errors
/// When one cannot be had; none is open then.
pub(super) async fn open(
    addresses: &Addresses,
    view: &View,
    subject: &Subject,
) -> Result<Streams, Error> {
    let mut streams = Streams::default();
    match Way::of(&addresses.stdin)? {
        None => {}
        Some(Way::Path(path)) => {
            let opened = within(view, || open_input(path));
            let (read, held) = opened.map_err(failed(&addresses.stdin))?;
            streams.stdio.stdin = Some(read);
            streams.held = held;
        }
        Some(_) => return Err(Error::Unknown(addresses.stdin.clone())),
    }
    // One program takes both.
    if let Some(Way::Program(program)) = Way::of(&addresses.stdout)? {
        let started = logger::start(program, subject).await;
        let [out, err] = started.map_err(failed(&addresses.stdout))?;
        streams.stdio.stdout = Some(out);
        streams.stdio.stderr = (!addresses.stderr.is_empty()).then_some(err);
        return Ok(streams);
    }
    streams.stdio.stdout = output(&addresses.stdout, view)?;
    streams.stdio.stderr = output(&addresses.stderr, view)?;
    Ok(streams)
}

fn output(address: &str, view: &View) -> Result<Option<OwnedFd>, Error> {
    let file = match Way::of(address)? {
        None => return Ok(None),
        Some(Way::Path(path)) => within(view, || open_output(path)),
        Some(Way::File(path)) => within(view, || open_file(path)),
        Some(Way::Program(_)) => return Err(Error::Unknown(address.to_owned())),
    };
    file.map(|file| Some(file.into())).map_err(failed(address))
}

fn within<T: Send>(view: &View, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    view.within(work)?
}

/// The end to read, and with a FIFO another one to write.
fn open_input(path: &Path) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let nonblocking = |options: &mut OpenOptions| {
        options
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    let read = nonblocking(OpenOptions::new().read(true))?;
    let is_fifo = read.metadata()?.file_type().is_fifo();
    let held = is_fifo.then(|| nonblocking(OpenOptions::new().write(true)));
    Ok((read.into(), held.transpose()?.map(OwnedFd::from)))
}

/// A FIFO for both ends: without a reader, writing to it would be the end.
fn open_output(path: &Path) -> io::Result<File> {
    let is_fifo = fs::metadata(path)?.file_type().is_fifo();
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match is_fifo {
        true => options.read(true).write(true),
        false => options.append(true),
    };
    options.open(path)
}

fn open_file(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn subject() -> Subject {
        Subject {
            namespace: "default".into(),
            container: "web".into(),
        }
    }

    #[test]
    fn addresses_say_how() {
        assert_eq!(Way::of("").unwrap(), None);
        assert_eq!(Way::of("/f").unwrap(), Some(Way::Path("/f".as_ref())));
        assert_eq!(
            Way::of("fifo:///f").unwrap(),
            Some(Way::Path("/f".as_ref()))
        );
        assert_eq!(
            Way::of("file:///f").unwrap(),
            Some(Way::File("/f".as_ref()))
        );
        let program = Way::of("binary:///f?a=b").unwrap();
        assert_eq!(program, Some(Way::Program("/f?a=b")));
        for bad in ["f", "tcp://host", "attached"] {
            assert!(
                Way::of(bad).unwrap_err().to_string().contains("is meant"),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn fifos_that_nobody_opens_do_not_hold_us_up() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a mount namespace is entered as root only");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let fifo = |name: &str| {
            let path = folder.path().join(name);
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            path.display().to_string()
        };
        let addresses = Addresses {
            stdin: fifo("in"),
            stdout: fifo("out"),
            stderr: format!("file://{}/logs/err", folder.path().display()),
        };
        let view = View::own().unwrap();
        let streams = open(&addresses, &view, &subject()).await.unwrap();
        // What is written before anybody reads is kept.
        let mut out = File::from(streams.stdio.stdout.unwrap());
        out.write_all(b"early").unwrap();
        let mut reader = OpenOptions::new()
            .read(true)
            .open(&addresses.stdout)
            .unwrap();
        let mut word = [0; 5];
        reader.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"early");
        // Input does not end with its writer, only when we let go.
        let mut input = File::from(streams.stdio.stdin.unwrap());
        let mut writer = OpenOptions::new()
            .write(true)
            .open(&addresses.stdin)
            .unwrap();
        writer.write_all(b"word").unwrap();
        drop(writer);
        input.read_exact(&mut word[..4]).unwrap();
        let nothing_yet = input.read(&mut word).unwrap_err();
        assert_eq!(nothing_yet.kind(), io::ErrorKind::WouldBlock);
        drop(streams.held);
        assert_eq!(input.read(&mut word).unwrap(), 0);
        File::from(streams.stdio.stderr.unwrap())
            .write_all(b"x")
            .unwrap();
        assert!(folder.path().join("logs/err").exists());
    }

    #[tokio::test]
    async fn a_stream_that_is_not_there_is_named() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a mount namespace is entered as root only");
            return;
        }
        let view = View::own().unwrap();
        for addresses in [
            Addresses {
                stdout: "/no/such/fifo".into(),
                ..Addresses::default()
            },
            Addresses {
                stdin: "/no/such/fifo".into(),
                ..Addresses::default()
            },
        ] {
            let error = open(&addresses, &view, &subject()).await.unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("/no/such/fifo") && text.contains("No such file"),
                "{text}"
            );
        }
    }
}
