//! A bundle is read, and what it shares with the guest is taken, as its client
//! sees the host's files.

use std::path::Path;

use casemate_linux::view::View;

use crate::{
    disk::RootDisk,
    error::Error,
    handle::Create,
    neighbours::{Neighbour, Neighbours},
    pod_files::PodFiles,
    rootfs,
    share::{Entry, Taken},
    spec::{self, GuestSpec, HostPath, HostSpec, Split},
};

/// A bundle's configuration, read and split.
pub(crate) struct ReadBundle {
    pub(crate) oci_version: String,
    pub(crate) host: HostSpec,
    pub(crate) guest: GuestSpec,
    /// Copies of the mounts that the guest is to see.
    pub(crate) files: Vec<Taken>,
    /// The root file system, if it is no folder of the host.
    pub(crate) disk: Option<RootDisk>,
}

impl ReadBundle {
    /// Of a container that needs no file of the host.
    pub(crate) fn of(split: Split) -> Self {
        Self {
            oci_version: spec::VERSION.to_owned(),
            host: split.host,
            guest: split.guest,
            files: Vec::new(),
            disk: None,
        }
    }
}

/// Reads and splits config.json and takes what it shares with the guest, all as
/// the container's creator sees it. `containers` are those of the sandbox, which
/// may have files for it.
pub(crate) fn read_bundle(
    create: &Create,
    view: &View,
    containers: Vec<Neighbour>,
    pod: Option<&PodFiles>,
) -> Result<ReadBundle, Error> {
    let mut bundle = within(view, || {
        read_bundle_here(create, &Neighbours::known(containers), pod)
    })?;
    if let Some(place) = &bundle.host.rootfs
        && bundle.disk.is_none()
    {
        let place = place.as_path();
        let root = within(view, || match create.rootfs.as_slice() {
            [] => Ok(root_entry(create, place).take()?),
            mounts => {
                let tree = rootfs::assemble(mounts, place)?;
                Ok(root_entry(create, place).of(tree, true)?)
            }
        });
        bundle.files.push(root?);
    }
    Ok(bundle)
}

fn within<T: Send>(
    view: &View,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    view.within(work)
        .map_err(|error| Error::Host(format!("mount namespace of the client: {error}").into()))?
}

fn read_bundle_here(
    create: &Create,
    containers: &Neighbours,
    pod: Option<&PodFiles>,
) -> Result<ReadBundle, Error> {
    let path = create.bundle.join("config.json");
    let json = std::fs::read(&path)
        .map_err(|error| Error::Bundle(format!("{}: {error}", path.display()).into()))?;
    let mut spec = spec::parse(&json)?;
    if let Some(pod) = pod {
        pod.add_to(&mut spec);
    }
    let directory = HostPath::new(&create.bundle)
        .ok_or_else(|| Error::Bundle("the bundle's path is not absolute".into()))?;
    let bundle = spec::Bundle {
        container_id: create.id.as_str(),
        directory: &directory,
    };
    let split = spec::split(&spec, bundle, &spec::LiveHost(containers))?;
    // A sandbox container has none, whatever comes with it.
    let disk = match &split.host.rootfs {
        Some(_) => RootDisk::of(&create.rootfs)?,
        None => None,
    };
    Ok(ReadBundle {
        oci_version: spec.version().clone(),
        files: take_files(&split.host)?,
        disk,
        host: split.host,
        guest: split.guest,
    })
}

/// The root file system's.
fn root_entry<'a>(create: &Create, place: &'a Path) -> Entry<'a> {
    Entry {
        source: place,
        slot: casemate_protocol::paths::rootfs_slot(create.id.as_str()).into(),
        readonly: false,
        recursive: true,
        readonly_below: false,
        follows: false,
    }
}

/// The volumes.
fn take_files(host: &HostSpec) -> Result<Vec<Taken>, Error> {
    let volumes = host.shares.iter().map(|share| Entry {
        source: share.source.as_path(),
        slot: share.slot.as_str().into(),
        readonly: share.readonly,
        recursive: share.recursive,
        readonly_below: share.readonly_below,
        follows: share.follows,
    });
    Ok(volumes
        .map(|entry| entry.take())
        .collect::<Result<_, _>>()?)
}
