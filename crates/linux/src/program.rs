//! Starting a program: clone3(2) and execve(2), and between them nothing but
//! system calls.
//!
//! Whatever needs memory is made before the child is, so that this may be
//! called by a process with many threads: a lock that one of them holds stays
//! locked in the child for good.

use std::{
    ffi::{CString, c_char},
    fs::File,
    io::{self, PipeReader, Read},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd},
};

use crate::{
    c_string, check, descriptor, disposition,
    process::{self, Birth, Child, die_with_parent},
};

/// Most descriptors of a child beside its standard streams.
const MOST: usize = 8;

/// First descriptor after the standard streams.
const FIRST: RawFd = 3;

/// What the child is and has.
#[derive(Debug, Default, Clone, Copy)]
pub struct Start<'a> {
    /// Its namespaces and cgroup.
    pub birth: Birth<'a>,
    /// Its standard streams; /dev/null where there is none.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// What it finds at 3 and up, in this order. Nothing else is inherited.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Its environment: "NAME=value".
    pub environment: &'a [String],
    /// It begins a session of its own (setsid(2)).
    pub new_session: bool,
    /// The kernel kills it when the calling thread ends. Not across a PID
    /// namespace.
    pub dies_with_parent: bool,
}

/// Starts the program at `path`; `line` is its arguments, its own name first.
/// Every signal has its default action and none is blocked. Returns when the
/// program runs.
///
/// # Errors
/// Those of clone3(2) and execve(2); EINVAL for more than 8 descriptors.
pub fn start(path: &str, line: &[impl AsRef<[u8]>], start: Start<'_>) -> io::Result<Child> {
    if start.descriptors.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let path = c_string(path.as_bytes())?;
    let (line, environment) = (c_strings(line)?, c_strings(start.environment)?);
    let (line, environment) = (terminated(&line), terminated(&environment));
    let (failure, told) = io::pipe()?;
    let parent = std::process::id();
    let child = process::spawn(start.birth, || {
        let mut told = told.as_raw_fd();
        let error = become_program(&path, [&line, &environment], &start, parent, &mut told);
        // SAFETY: writes four bytes from the stack; the parent sees any failure
        // to do so as an exit code.
        unsafe { libc::write(told, (&raw const error).cast(), 4) };
        127
    })?;
    drop(told);
    outcome(failure).inspect_err(|_| {
        // It has ended, or is about to.
        let _ = child.wait();
    })?;
    Ok(child)
}

fn c_strings(words: &[impl AsRef<[u8]>]) -> io::Result<Vec<CString>> {
    words.iter().map(|word| c_string(word.as_ref())).collect()
}

/// As execve(2) wants it.
fn terminated(words: &[CString]) -> Vec<*const c_char> {
    let pointers = words.iter().map(|word| word.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}

/// The end of file when the program runs, or the error number of a child that
/// could not become it.
fn outcome(mut failure: PipeReader) -> io::Result<()> {
    let mut error = [0; 4];
    match failure.read(&mut error)? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error))),
    }
}

/// In the child: returns the error number of what has failed, to be written to
/// `told`, which moves as the others are put in their places.
fn become_program(
    path: &CString,
    [line, environment]: [&[*const c_char]; 2],
    start: &Start<'_>,
    parent: u32,
    told: &mut RawFd,
) -> i32 {
    let mut attempt = || -> io::Result<()> {
        disposition::reset_all();
        if start.new_session {
            // SAFETY: no arguments.
            check(i64::from(unsafe { libc::setsid() }))?;
        }
        place_descriptors(start, told)?;
        if start.dies_with_parent {
            die_with_parent(parent)?;
        }
        // SAFETY: both lists end with a null pointer and point to C strings
        // that were made before the fork.
        check(i64::from(unsafe {
            libc::execve(path.as_ptr(), line.as_ptr(), environment.as_ptr())
        }))?;
        Ok(())
    };
    let error = attempt().err();
    error.and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// Two moves, as a descriptor may stand where another one has to go: first all
/// out of the way, then each to its place.
fn place_descriptors(start: &Start<'_>, told: &mut RawFd) -> io::Result<()> {
    let count = FIRST as usize + start.descriptors.len();
    let last = count as RawFd;
    *told = park(*told, last)?;
    let mut parked = [-1; FIRST as usize + MOST];
    let others = start.descriptors.iter().copied().map(Some);
    for (place, fd) in parked.iter_mut().zip(start.stdio.into_iter().chain(others)) {
        *place = match fd {
            Some(fd) => park(fd.as_raw_fd(), last)?,
            None => open_null(last)?,
        };
    }
    for (target, fd) in (0..).zip(&parked[..count]) {
        // SAFETY: integers only; dup2 leaves the copy open across exec.
        check(i64::from(unsafe { libc::dup2(*fd, target) }))?;
    }
    // SAFETY: as above; this one is closed by exec.
    check(i64::from(unsafe {
        libc::dup3(*told, last, libc::O_CLOEXEC)
    }))?;
    *told = last;
    descriptor::close_from(last + 1)
}

fn park(fd: RawFd, above: RawFd) -> io::Result<RawFd> {
    // SAFETY: integers only; the copy belongs to nobody else.
    let copy = check(i64::from(unsafe {
        libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above + 1)
    }))?;
    Ok(copy as RawFd)
}

fn open_null(above: RawFd) -> io::Result<RawFd> {
    // SAFETY: the path is a C string.
    let fd = check(i64::from(unsafe {
        libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC)
    }))? as RawFd;
    // SAFETY: it was opened above and belongs to nobody else.
    let fd = unsafe { File::from_raw_fd(fd) };
    park(fd.as_raw_fd(), above)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;
    use crate::process::Exit;

    fn shell(script: &str, given: Start<'_>) -> Exit {
        let line = ["sh", "-c", script];
        start("/bin/sh", &line, given).unwrap().wait().unwrap()
    }

    #[test]
    fn descriptors_are_where_they_should_be() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut text = descriptor::memory_file("text").unwrap();
        text.write_all(b"four").unwrap();
        io::Seek::rewind(&mut text).unwrap();
        let environment = ["HOME=/here".to_owned()];
        let given = Start {
            stdio: [None, Some(writer.as_fd()), None],
            descriptors: &[writer.as_fd(), text.as_fd()],
            environment: &environment,
            ..Start::default()
        };
        let script =
            "cat <&0; cat <&4; echo three >&3; ls /proc/self/fd | tr '\\n' ' '; echo $HOME";
        assert_eq!(shell(script, given), Exit::Code(0));
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        // The one beyond is the directory that ls reads.
        assert_eq!(told, "fourthree\n0 1 2 3 4 5 /here\n");
    }

    #[test]
    fn one_that_cannot_be_started_says_why() {
        let error = start("/no/such/program", &["x"], Start::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = start("/etc/passwd", &["x"], Start::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let null = File::open("/dev/null").unwrap();
        let many = [null.as_fd(); MOST + 1];
        let given = Start {
            descriptors: &many,
            ..Start::default()
        };
        let error = start("/bin/true", &["true"], given).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_session_of_its_own() {
        let given = Start {
            new_session: true,
            dies_with_parent: true,
            ..Start::default()
        };
        let script = "test $(cut -d ' ' -f 6 /proc/$$/stat) = $$";
        assert_eq!(shell(script, given), Exit::Code(0));
    }
}
