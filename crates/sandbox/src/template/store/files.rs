//! The files of a template: whether they are as they were made.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use casemate_hypervisor::TemplateFiles;
use nix::{
    libc,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};
use sha2::{Digest, Sha256};

use super::Found;
use crate::template::{
    fit::{Fit, Identity, Key, hex},
    header::{self, Bad, Header, Part},
};

pub(in crate::template) const HEADER: &str = "header";
pub(in crate::template) const STATE: &str = "state";
pub(in crate::template) const MEMORY: &str = "memory";

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its header is not one.
    #[error(transparent)]
    Header(#[from] Bad),
    /// A file is not the one that was made.
    #[error("its file {0:?} is not as it was made")]
    File(&'static str),
    /// The machine it fits is not the one that is wanted.
    #[error("it is one that fits another machine")]
    Other,
    /// A file cannot be read.
    #[error("its file {name:?}: {source}")]
    Io {
        /// Its name.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What its files take; nothing of a folder that has just gone.
pub(super) fn bytes_of(folder: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok());
    files.map(|file| file.blocks() * BLOCK).sum()
}

pub(super) fn of(name: &'static str) -> impl FnOnce(io::Error) -> Unfit {
    move |source| Unfit::Io { name, source }
}

/// None where there is no such folder.
pub(super) fn open(folder: &Path, fit: &Fit) -> Result<Option<Found>, Unfit> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let header = read_header(folder, fit.key())?;
    if header.fits != fit.text() {
        return Err(Unfit::Other);
    }
    let state = unchanged(folder, STATE, &header.state)?;
    if digest(&state).map_err(of(STATE))? != header.state.sha256 {
        return Err(Unfit::File(STATE));
    }
    let memory = unchanged(folder, MEMORY, &header.memory)?;
    let files = TemplateFiles { state, memory };
    Ok(Some(Found { header, files }))
}

pub(super) fn read_header(folder: &Path, key: &Key) -> Result<Header, Unfit> {
    let file = open_file(folder, HEADER)?;
    let mut bytes = Vec::new();
    let read = file.take(header::MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(of(HEADER))?;
    Ok(Header::from_bytes(&bytes, key)?)
}

/// Opens a file that nobody has touched since it was made.
pub(super) fn unchanged(folder: &Path, name: &'static str, part: &Part) -> Result<File, Unfit> {
    let file = open_file(folder, name)?;
    let metadata = file.metadata().map_err(of(name))?;
    match Identity::from(&metadata) == part.file {
        true => Ok(file),
        false => Err(Unfit::File(name)),
    }
}

fn open_file(folder: &Path, name: &'static str) -> Result<File, Unfit> {
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW);
    options.open(folder.join(name)).map_err(of(name))
}

/// The digest of a small file, read from its beginning to its end and rewound.
pub(in crate::template) fn digest(file: &File) -> io::Result<String> {
    let mut digest = Sha256::new();
    io::copy(&mut Positioned { file, at: 0 }, &mut digest)?;
    Ok(hex(&digest.finalize()))
}

/// Reads without moving the file's own position.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

pub(super) fn touch(folder: &Path) -> nix::Result<()> {
    let now = TimeSpec::UTIME_NOW;
    let here = nix::fcntl::AT_FDCWD;
    utimensat(here, folder, &now, &now, UtimensatFlags::FollowSymlink)
}
