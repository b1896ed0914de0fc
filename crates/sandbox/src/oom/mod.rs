//! Telling a client that its container ran out of memory.
//!
//! Clients watch the container's cgroup on the host, and a guest that runs out
//! of memory does not disturb that one. So it is told here, once for each
//! container, before the process ends whose end clients wait for:
//!
//! * conmon (Podman, CRI-O) leaves an empty file `oom` in the bundle; it is left
//!   in its stead.
//! * containerd hears it from its shim, which is this process.
//! * Everybody else (Docker and containerd with their runc shim) waits for the
//!   kernel's own notice, which nobody can send but the kernel: it is made to,
//!   by [`kernel`].

mod kernel;

use std::{
    fs::File,
    io, mem,
    path::{Path, PathBuf},
};

use tokio::sync::Mutex;

use crate::{cgroup::Cgroup, handle::News, identifier::Id, machine::Client, spec::HostSpec};

/// Names the client (libpod and CRI-O set it on every container).
const MANAGER: &str = "io.container.manager";

/// What conmon calls it.
const FILE: &str = "oom";

/// Whom to tell, and how.
#[derive(Debug)]
pub(crate) struct Notice {
    way: Way,
    /// Locked while it is being told.
    told: Mutex<bool>,
}

#[derive(Debug)]
enum Way {
    File(PathBuf),
    News(Client, Id),
    Kernel(PathBuf),
    Nobody,
}

impl Notice {
    /// For the client of a container; of those behind the command line, its
    /// annotations name the one.
    pub(crate) fn new(client: &Client, id: &Id, bundle: &Path, host: &HostSpec) -> Self {
        let manager = host.annotations.get(MANAGER).map(String::as_str);
        let way = match (client, manager, &host.cgroups_path) {
            (Client::Containerd(_), ..) => Way::News(client.clone(), id.clone()),
            (_, Some("libpod" | "cri-o"), _) => Way::File(bundle.join(FILE)),
            (_, _, Some(path)) => Way::Kernel(path.into()),
            (_, _, None) => Way::Nobody,
        };
        Self {
            way,
            told: Mutex::new(false),
        }
    }

    /// Tells it, if that was not done yet. It has been told when this returns, also
    /// when somebody else has begun to: the end that comes next would overtake it.
    ///
    /// # Errors
    /// One line: what could not be done.
    pub(crate) async fn tell(&self) -> io::Result<()> {
        let mut told = self.told.lock().await;
        if mem::replace(&mut *told, true) {
            return Ok(());
        }
        match &self.way {
            Way::File(path) => File::create(path).map(drop),
            Way::News(client, id) => {
                client.tell(News::OutOfMemory(id.clone()));
                Ok(())
            }
            Way::Kernel(path) => {
                let group = Cgroup::locate(path).map_err(io::Error::other)?;
                let Some(directory) = group.memory() else {
                    return Ok(());
                };
                kernel::provoke(directory).await
            }
            Way::Nobody => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::Listener;

    fn way(client: &Client, manager: &str, cgroup: Option<&str>) -> Way {
        let host = HostSpec {
            annotations: [(MANAGER.to_owned(), manager.to_owned())].into(),
            cgroups_path: cgroup.map(str::to_owned),
            ..HostSpec::fake()
        };
        let id = Id::new("web").unwrap();
        Notice::new(client, &id, Path::new("/bundle"), &host).way
    }

    #[test]
    fn each_client_is_told_in_the_way_that_it_listens() {
        let classic = |manager, cgroup| way(&Client::CommandLine, manager, cgroup);
        for conmon in ["libpod", "cri-o"] {
            let way = classic(conmon, Some("/a"));
            assert!(matches!(way, Way::File(path) if path == Path::new("/bundle/oom")));
        }
        let kernel = classic("other", Some("/a"));
        assert!(matches!(kernel, Way::Kernel(path) if path == Path::new("/a")));
        assert!(matches!(classic("other", None), Way::Nobody));
    }

    #[tokio::test]
    async fn containerd_has_it_among_its_news_once() {
        let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
        let listener = Listener::new(move |one| told.send(one).unwrap());
        let way = way(&Client::Containerd(listener), "other", Some("/a"));
        let notice = Notice {
            way,
            told: Mutex::new(false),
        };
        notice.tell().await.unwrap();
        notice.tell().await.unwrap();
        assert!(matches!(news.try_recv(), Ok(News::OutOfMemory(id)) if id.as_str() == "web"));
        assert!(news.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_comes_second_waits_for_who_tells() {
        let notice = Notice {
            way: Way::Nobody,
            told: Mutex::new(false),
        };
        let mut telling = notice.told.lock().await;
        let second = tokio::time::timeout(Duration::from_millis(10), notice.tell());
        assert!(second.await.is_err());
        *telling = true;
        drop(telling);
        notice.tell().await.unwrap();
    }
}
