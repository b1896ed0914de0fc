//! How a process of a sandbox is named.

use std::fmt;

use casemate_protocol::agent::{ContainerRef, ProcessRef};

use crate::identifier::Id;

/// A process: a container's init, or one that exec has added.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The container.
    pub container: Id,
    /// The exec; absent for init.
    pub exec: Option<Id>,
}

impl Key {
    /// The init process of a container.
    pub fn init(container: Id) -> Self {
        Self {
            container,
            exec: None,
        }
    }

    /// As the agent knows it.
    pub fn process(&self) -> ProcessRef {
        ProcessRef {
            container_id: self.container.to_string(),
            exec_id: self.exec_id().to_owned(),
            ..Default::default()
        }
    }

    /// The container, as the agent knows it.
    pub fn container(&self) -> ContainerRef {
        ContainerRef {
            container_id: self.container.to_string(),
            ..Default::default()
        }
    }

    /// Empty for init.
    pub fn exec_id(&self) -> &str {
        self.exec.as_ref().map_or("", Id::as_str)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => write!(f, "{}", self.container),
            Some(exec) => write!(f, "{}/{exec}", self.container),
        }
    }
}
