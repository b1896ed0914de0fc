//! An image of one layer as an archive that every client loads: an OCI image layout (podman,
//! containerd, skopeo) which also holds the `manifest.json` that `docker load` reads.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{cache, command};

/// Changes whenever archives of the same layer come out differently.
pub(super) const FORMAT: &str = "2";

const EPOCH: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What goes into the archive.
pub(super) struct Image<'a> {
    pub(super) reference: &'a str,
    pub(super) layer: &'a Path,
    pub(super) command: &'a [&'a str],
}

impl Image<'_> {
    /// Lays the image out in the folder `layout` and packs that into `archive`.
    pub(super) fn write(&self, layout: &Path, archive: &Path) -> Result<()> {
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = fs::read(self.layer).with_context(|| format!("{}", self.layer.display()))?;
        let layer = blob(&blobs, "application/vnd.oci.image.layer.v1.tar", &layer)?;
        let config = document(
            &blobs,
            "application/vnd.oci.image.config.v1+json",
            &self.config(&layer),
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
        });
        let mut manifest = document(
            &blobs,
            "application/vnd.oci.image.manifest.v1+json",
            &manifest,
        )?;
        // podman names what it loads by the second, containerd by the first.
        manifest["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        });
        let docker = json!([{
            "Config": place(&config),
            "RepoTags": [self.reference],
            "Layers": [place(&layer)],
        }]);
        write(layout, "index.json", &index)?;
        write(layout, "manifest.json", &docker)?;
        write(
            layout,
            "oci-layout",
            &json!({ "imageLayoutVersion": "1.0.0" }),
        )?;
        let entries = ["blobs", "index.json", "manifest.json", "oci-layout"];
        pack(layout, &entries, archive)
    }

    fn config(&self, layer: &Value) -> Value {
        json!({
            "architecture": "amd64",
            "os": "linux",
            "created": EPOCH,
            "config": { "Env": [PATH], "Cmd": self.command, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            "history": [{ "created": EPOCH, "created_by": "cargo xtask image" }],
        })
    }
}

/// Packs entries of a folder so that the same content gives the same bytes. All files belong
/// to root.
pub(super) fn pack(folder: &Path, entries: &[&str], archive: &Path) -> Result<()> {
    command::output(
        Command::new("tar")
            .args(["--create", "--format=gnu", "--sort=name", "--mtime=@0"])
            .args(["--owner=0", "--group=0", "--numeric-owner", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(folder)
            .args(entries),
    )?;
    Ok(())
}

fn document(blobs: &Path, kind: &str, document: &Value) -> Result<Value> {
    blob(blobs, kind, document.to_string().as_bytes())
}

/// Stores a blob by its digest and returns its descriptor.
fn blob(blobs: &Path, kind: &str, content: &[u8]) -> Result<Value> {
    let digest = cache::sha256(content);
    fs::write(blobs.join(&digest), content)?;
    Ok(json!({
        "mediaType": kind,
        "digest": format!("sha256:{digest}"),
        "size": content.len(),
    }))
}

/// The path of a blob inside the archive.
fn place(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replace(':', "/"))
}

fn write(folder: &Path, name: &str, document: &Value) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, document.to_string()).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path) -> Vec<u8> {
        let layer = folder.join("layer.tar");
        fs::write(&layer, "layer").unwrap();
        let image = Image {
            reference: "localhost/casemate/test:latest",
            layer: &layer,
            command: &["/bin/sh"],
        };
        let archive = folder.join("image.tar");
        image.write(&folder.join("layout"), &archive).unwrap();
        fs::read(archive).unwrap()
    }

    #[test]
    fn the_same_layer_gives_the_same_archive() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(archive(first.path()), archive(second.path()));
    }

    #[test]
    fn both_indexes_lead_to_the_layer() {
        let folder = tempfile::tempdir().unwrap();
        archive(folder.path());
        let layout = folder.path().join("layout");
        let read = |path: &str| -> Value {
            serde_json::from_slice(&fs::read(layout.join(path)).unwrap()).unwrap()
        };
        let index = read("index.json");
        let manifest = read(&place(&index["manifests"][0]));
        let docker = read("manifest.json");
        assert_eq!(docker[0]["Config"], place(&manifest["config"]));
        assert_eq!(docker[0]["Layers"][0], place(&manifest["layers"][0]));
        assert_eq!(
            fs::read(layout.join(place(&manifest["layers"][0]))).unwrap(),
            b"layer"
        );
        let config = read(&place(&manifest["config"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
    }
}
