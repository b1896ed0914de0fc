//! Where a template is made: a folder beside the templates that its maker holds
//! locked. The kernel lets go of the lock when the maker ends, however it does;
//! what is found unlocked is rubbish.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use casemate_hypervisor::TemplateFiles;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
};

use super::{
    fit::{Identity, Key},
    header::{Header, Part},
    pages,
    store::{Error, HEADER, MEMORY, NEW, STATE, Store, digest, failed},
};

/// A folder that is ours until it is finished or dropped.
#[derive(Debug)]
pub(super) struct Workplace {
    store: Store,
    key: Key,
    path: PathBuf,
    /// Locked.
    folder: Flock<File>,
    finished: bool,
}

impl Workplace {
    /// Takes the place where the template `key` is made; none when somebody else
    /// is making it.
    ///
    /// # Errors
    /// A full disk, missing rights.
    pub(super) fn claim(store: &Store, key: &Key) -> Result<Option<Self>, Error> {
        store.make()?;
        let path = store.root().join(format!("{NEW}{key}"));
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(failed(&path))?,
            }
            let folder = match lock(&path) {
                Ok(Some(folder)) => folder,
                Ok(None) => return Ok(None),
                // Swept between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&path)(error)),
            };
            let place = Self {
                store: store.clone(),
                key: key.clone(),
                path: path.clone(),
                folder,
                finished: false,
            };
            if !place.is_at(&path)? {
                place.leave();
                continue;
            }
            place.empty()?;
            return Ok(Some(place));
        }
    }

    /// Removes one that nobody holds; false if somebody does.
    ///
    /// # Errors
    /// When it is still there.
    pub(super) fn sweep(path: &Path) -> Result<bool, Error> {
        let swept = || -> io::Result<bool> {
            let Some(_held) = lock(path)? else {
                return Ok(false);
            };
            fs::remove_dir_all(path).map(|()| true)
        };
        match swept() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map_err(failed(path)),
        }
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the two files of a template, empty.
    ///
    /// # Errors
    /// A full disk.
    pub(super) fn files(&self) -> Result<TemplateFiles, Error> {
        let make = |name: &str| {
            let path = self.path.join(name);
            let mut options = File::options();
            let options = options.read(true).write(true).create_new(true).mode(0o400);
            options.open(&path).map_err(failed(&path))
        };
        Ok(TemplateFiles {
            state: make(STATE)?,
            memory: make(MEMORY)?,
        })
    }

    /// The two files as a start opens them.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn opened(&self) -> Result<TemplateFiles, Error> {
        let open = |name: &str| {
            let path = self.path.join(name);
            File::open(&path).map_err(failed(&path))
        };
        Ok(TemplateFiles {
            state: open(STATE)?,
            memory: open(MEMORY)?,
        })
    }

    /// Removes the two files.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn discard(&self) -> Result<(), Error> {
        [STATE, MEMORY].into_iter().try_for_each(|name| {
            let path = self.path.join(name);
            fs::remove_file(&path).map_err(failed(&path))
        })
    }

    /// What the two files hold, which are not written to any more.
    ///
    /// # Errors
    /// When they cannot be read or kept.
    pub(super) fn parts(&self, files: &TemplateFiles) -> Result<[Part; 2], Error> {
        let TemplateFiles { state, memory } = files;
        let look = || -> io::Result<[Part; 2]> {
            state.sync_all()?;
            memory.sync_all()?;
            let file = Identity::from(&state.metadata()?);
            let state = Part {
                file,
                bytes: file.size,
                sha256: digest(state)?,
            };
            let contents = pages::contents(memory)?;
            let memory = Part {
                file: Identity::from(&memory.metadata()?),
                bytes: contents.bytes,
                sha256: contents.sha256,
            };
            Ok([state, memory])
        };
        look().map_err(failed(&self.path))
    }

    /// Shows the template to everybody, in place of one of the same name.
    ///
    /// # Errors
    /// A full disk. Nothing is left then.
    pub(super) fn finish(mut self, header: &Header) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            self.keep_only(&[STATE, MEMORY])?;
            let path = self.path.join(HEADER);
            fs::write(&path, header.to_bytes())?;
            fs::set_permissions(&path, Permissions::from_mode(0o400))?;
            File::open(&path)?.sync_all()?;
            self.folder.sync_all()
        };
        write().map_err(failed(&self.path))?;
        self.show()?;
        self.finished = true;
        let root = self.store.root();
        let kept = File::open(root).and_then(|root| root.sync_all());
        kept.map_err(failed(root))
    }

    fn show(&self) -> Result<(), Error> {
        loop {
            match fs::rename(&self.path, self.store.place(&self.key)) {
                Err(error) if is_taken(&error) => self.store.remove(&self.key)?,
                other => return other.map_err(failed(&self.path)),
            };
        }
    }

    /// Whether the folder is still under this name.
    fn is_at(&self, path: &Path) -> Result<bool, Error> {
        let ours = self.folder.metadata().map_err(failed(path))?;
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => {
                let there = other.map_err(failed(path))?;
                Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            }
        }
    }

    /// Of what a maker has left that was killed.
    fn empty(&self) -> Result<(), Error> {
        self.keep_only(&[]).map_err(failed(&self.path))
    }

    fn keep_only(&self, kept: &[&str]) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if kept.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Without touching what is under the name now.
    fn leave(mut self) {
        self.finished = true;
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "something is left");
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOTEMPTY | Errno::EEXIST))
}

/// The folder, locked, unless somebody else holds it.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let mut options = File::options();
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = options.read(true).custom_flags(flags).open(path)?;
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(folder) => Ok(Some(folder)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}
