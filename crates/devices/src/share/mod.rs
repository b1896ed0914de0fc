//! The file server: virtiofsd's, as a library, at the root of the jail.

mod fresh;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use casemate_config::CachePolicy;
use virtiofsd::passthrough::{
    CachePolicy as FuseCache, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs,
};
use virtiofsd::vhost_user::{VhostUserFsBackend, VhostUserFsBackendBuilder};

use crate::options::Inodes;
use fresh::Fresh;

/// A vhost-user-fs device.
pub(crate) type Backend = Arc<VhostUserFsBackend<Fresh>>;

/// What the file server needs of its surroundings.
pub(crate) struct Surroundings {
    /// See [`crate::jail::Jail::proc_self_fd`].
    pub(crate) proc_self_fd: File,
    /// See [`crate::jail::Jail::mountinfo`].
    pub(crate) mountinfo: File,
    /// Descriptors the guest's files may take.
    pub(crate) descriptors: u64,
}

/// Makes the device that serves the root directory of this process.
pub(crate) fn backend(
    surroundings: Surroundings,
    cache: CachePolicy,
    inodes: Inodes,
) -> io::Result<Backend> {
    let fs = PassthroughFs::new(config(surroundings, cache, inodes))?;
    let fs = Fresh::new(fs, cache == CachePolicy::Auto);
    // Without a thread pool: one thread keeps the process small, and requests
    // of one guest wait for each other less than threads would cost.
    let backend = VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(0)
        .build(fs)
        .map_err(io::Error::other)?;
    Ok(Arc::new(backend))
}

fn config(surroundings: Surroundings, cache: CachePolicy, inodes: Inodes) -> Config {
    let (cache_policy, trust) = match cache {
        CachePolicy::Auto => (FuseCache::Auto, Duration::from_secs(1)),
        CachePolicy::Always => (FuseCache::Always, Duration::from_secs(24 * 60 * 60)),
        CachePolicy::Never => (FuseCache::Never, Duration::ZERO),
    };
    Config {
        root_dir: "/".to_owned(),
        cache_policy,
        entry_timeout: trust,
        attr_timeout: trust,
        // Attributes read ahead would be thrown away at once.
        readdirplus: cache != CachePolicy::Never,
        // Without a cache in the guest, mmap(MAP_SHARED) has to be allowed
        // apart: git, dpkg and databases map files.
        allow_mmap: cache == CachePolicy::Never,
        // Ids, attributes, ACLs and file capabilities pass through as they are,
        // as in a container on the host.
        xattr: true,
        posix_acl: NegotiationMode::Auto,
        // The guest then need not look for security.capability on each write.
        killpriv_v2: true,
        // Root file systems and volumes are different file systems under one
        // share: without this the guest would confuse equal inode numbers.
        announce_submounts: true,
        inode_file_handles: match inodes {
            Inodes::Descriptors => InodeFileHandlesMode::Never,
            Inodes::Handles => InodeFileHandlesMode::Prefer,
        },
        proc_sfd_rawfd: Some(surroundings.proc_self_fd),
        proc_mountinfo_rawfd: Some(surroundings.mountinfo),
        guest_fd_limit: surroundings.descriptors,
        ..Config::default()
    }
}
