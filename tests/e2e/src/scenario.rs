//! One scenario, and how it says that it cannot run here.

use std::fmt;
use std::time::Duration;

use crate::host::Host;

/// What a scenario runs.
pub(crate) type Body = Box<dyn Fn(&Host) -> anyhow::Result<()> + Send + Sync>;

/// A function that is run once with each runtime.
pub struct Scenario {
    pub(crate) name: String,
    pub(crate) body: Body,
    pub(crate) only_vm: Option<&'static str>,
    pub(crate) limit: Duration,
}

impl Scenario {
    /// A scenario that every runtime must pass.
    pub fn new(
        name: impl Into<String>,
        body: impl Fn(&Host) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> Scenario {
        Scenario {
            name: name.into(),
            body: Box::new(body),
            only_vm: None,
            limit: Duration::from_secs(150),
        }
    }

    /// Only for runtimes with a virtual machine; says what runc lacks for it.
    pub fn only_vm(mut self, reason: &'static str) -> Scenario {
        self.only_vm = Some(reason);
        self
    }

    /// The time after which the scenario has failed.
    pub fn limit(mut self, limit: Duration) -> Scenario {
        self.limit = limit;
        self
    }
}

/// A list of scenarios from the functions' names.
#[macro_export]
macro_rules! scenarios {
    ($($function:ident),+ $(,)?) => {
        vec![$($crate::Scenario::new(stringify!($function), $function)),+]
    };
}

/// The error of a scenario that cannot run on this machine: it is counted as
/// skipped and its reason is printed.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}
