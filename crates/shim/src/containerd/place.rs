//! Where the state of containerd's containers is. Under `/run/casemate` each
//! containerd and namespace has a root of its own, laid out as the command
//! line's, so that `casemate --root <root> list` shows what is in it.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// Where all of them are.
const BASE: &str = "/run/casemate";

/// The socket of the containerd that a host usually has.
const USUAL: &str = "/run/containerd/containerd.sock";

/// A path of a socket has to fit into 107 bytes: longer names of namespaces are
/// told apart by a digest.
const MAX_NAMESPACE: usize = 32;

/// The state root for a namespace of the containerd at `address`.
pub(super) fn root(address: &str, namespace: &str) -> PathBuf {
    let address = address.strip_prefix("unix://").unwrap_or(address);
    let daemon = match address {
        "" | USUAL => "containerd".to_owned(),
        other => format!("containerd-{}", digest(other)),
    };
    let namespace = match namespace.len() {
        0..=MAX_NAMESPACE => namespace.to_owned(),
        _ => {
            let most = MAX_NAMESPACE - 9;
            let kept: String = namespace.chars().take(most).collect();
            format!("{kept}-{}", digest(namespace))
        }
    };
    PathBuf::from(BASE).join(daemon).join(namespace)
}

fn digest(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_and_namespace_has_its_own() {
        let root = |address, namespace| root(address, namespace).display().to_string();
        assert_eq!(root(USUAL, "k8s.io"), "/run/casemate/containerd/k8s.io");
        assert_eq!(
            root(USUAL, "moby"),
            root("unix:///run/containerd/containerd.sock", "moby")
        );
        let other = root("/tmp/x/containerd.sock", "default");
        assert_eq!(
            other.len(),
            "/run/casemate/containerd-12345678/default".len()
        );
        assert_ne!(other, root("/tmp/y/containerd.sock", "default"));
    }

    #[test]
    fn a_socket_fits_whatever_the_namespace_is_called() {
        let long = "n".repeat(76);
        let other = format!("{long}x");
        let root = root("/tmp/x/containerd.sock", &long);
        assert_ne!(root, super::root("/tmp/x/containerd.sock", &other));
        let socket = root.join(format!(".sandbox-{}/monitor.sock", "0".repeat(16)));
        assert!(socket.as_os_str().len() <= 107, "{}", socket.display());
    }
}
