//! A note that a template could not be made, so that not every start tries again
//! in vain: each try is a whole machine's boot.

use std::{
    fs, io,
    time::{Duration, SystemTime},
};

use super::{
    fit::Key,
    store::{Error, FAILED, Store, failed},
};

/// How long nobody tries again by himself.
const RETRY: Duration = Duration::from_secs(600);

/// Most that is kept of a reason, in bytes.
const LONGEST: usize = 1000;

/// Why a template is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub key: Key,
    /// In one line.
    pub reason: String,
    /// When.
    pub when: SystemTime,
}

impl Failure {
    /// Whether it is long enough ago for another try.
    pub fn is_over(&self) -> bool {
        // A clock that was set back makes it over as well.
        self.when.elapsed().is_ok_and(|past| past > RETRY) || self.when > SystemTime::now()
    }
}

impl Store {
    /// Notes that the template could not be made.
    ///
    /// # Errors
    /// A full disk.
    pub fn note_failure(&self, key: &Key, reason: &str) -> Result<(), Error> {
        self.make()?;
        let path = self.failure_file(key);
        let reason: String = reason.chars().take(LONGEST).collect();
        fs::write(&path, reason.replace('\n', " ")).map_err(failed(&path))
    }

    /// Why the last try failed, if it did.
    pub fn failure(&self, key: &Key) -> Option<Failure> {
        let path = self.failure_file(key);
        let when = fs::metadata(&path).and_then(|file| file.modified()).ok()?;
        let reason = fs::read(&path).ok()?;
        let reason = String::from_utf8_lossy(&reason[..reason.len().min(4 * LONGEST)]);
        Some(Failure {
            key: key.clone(),
            reason: crate::agent::printable(&reason),
            when,
        })
    }

    /// Every failure that is noted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn failures(&self) -> Result<Vec<Failure>, Error> {
        let names = self.names()?.into_iter();
        let keys = names.filter_map(|name| name.strip_suffix(FAILED)?.parse::<Key>().ok());
        Ok(keys.filter_map(|key| self.failure(&key)).collect())
    }

    /// Forgets it.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub fn forget_failure(&self, key: &Key) -> Result<(), Error> {
        let path = self.failure_file(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed(&path)),
        }
    }

    fn failure_file(&self, key: &Key) -> std::path::PathBuf {
        self.root().join(format!("{key}{FAILED}"))
    }
}
