//! The files in /etc by which the containers of a pod know its name and its
//! name servers. Kubernetes' clients make them and bind them into each
//! container, unless they leave a pod to its runtime (containerd's Sandbox API):
//! then they are made here.
//!
//! Containers can read them, not write: they are in memory of the host, and a
//! pod shall not have as much of that as it likes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Mount, Spec};

/// Where containers find them.
const ETC: &str = "/etc";

/// Name of the folder in the sandbox's directory.
const FOLDER: &str = "etc";

/// What is in the files; one that is not given is the container's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of `/etc/hostname`.
    pub hostname: Option<String>,
    /// Of `/etc/hosts`.
    pub hosts: Option<String>,
    /// Of `/etc/resolv.conf`.
    pub resolver: Option<String>,
}

/// The files, written.
#[derive(Clone, Debug)]
pub struct PodFiles {
    files: Vec<PathBuf>,
}

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

impl PodFiles {
    /// Writes them into the directory of a sandbox, with which they go.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(sandbox: &Path, contents: &Contents) -> Result<Self, Error> {
        let folder = sandbox.join(FOLDER);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let mut files = Vec::new();
        for (name, text) in [
            ("hostname", &contents.hostname),
            ("hosts", &contents.hosts),
            ("resolv.conf", &contents.resolver),
        ] {
            if let Some(text) = text {
                let path = folder.join(name);
                fs::write(&path, text).map_err(failed(&path))?;
                files.push(path);
            }
        }
        Ok(Self { files })
    }

    /// Binds them into a container, where its client binds nothing.
    pub(crate) fn add_to(&self, spec: &mut Spec) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for file in &self.files {
            let name = file.file_name().expect("a file has a name");
            let destination = Path::new(ETC).join(name);
            if mounts
                .iter()
                .any(|mount| *mount.destination() == destination)
            {
                continue;
            }
            let mut mount = Mount::default();
            mount
                .set_destination(destination)
                .set_typ(Some("bind".to_owned()))
                .set_source(Some(file.clone()))
                .set_options(Some(
                    ["rbind", "rprivate", "ro"].map(str::to_owned).to_vec(),
                ));
            mounts.push(mount);
        }
        spec.set_mounts(Some(mounts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    #[test]
    fn what_the_client_binds_stays() {
        let folder = tempfile::tempdir().unwrap();
        let contents = Contents {
            hostname: Some("tower\n".to_owned()),
            hosts: Some("127.0.0.1 localhost\n".to_owned()),
            resolver: None,
        };
        let files = PodFiles::write(folder.path(), &contents).unwrap();
        let json = br#"{"ociVersion": "1.2.0", "mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"}]}"#;
        let mut spec = spec::parse(json).unwrap();
        files.add_to(&mut spec);
        let mounts = spec.mounts().as_ref().unwrap();
        let seen: Vec<_> = mounts
            .iter()
            .map(|mount| {
                let source = mount.source().clone().unwrap();
                (mount.destination().to_str().unwrap(), source)
            })
            .collect();
        let name = folder.path().join("etc/hostname");
        assert_eq!(fs::read_to_string(&name).unwrap(), "tower\n");
        assert_eq!(
            seen,
            [
                ("/etc/hosts", PathBuf::from("/kubelet/hosts")),
                ("/etc/hostname", name)
            ]
        );
        assert!(!folder.path().join("etc/resolv.conf").exists());
    }
}
