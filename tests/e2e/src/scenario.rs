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
    /// No machine of it begins from a template.
    pub(crate) cold: bool,
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
            cold: false,
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

/// The same scenarios on a machine that has no templates.
pub fn without_templates(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let cold = |scenario: Scenario| Scenario {
        cold: true,
        only_vm: scenario.only_vm.or(Some("runc has no templates")),
        ..scenario
    };
    scenarios.into_iter().map(cold).collect()
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
