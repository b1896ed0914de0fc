//! The monitor's side of the conversation with the agent.
//!
//! The guest is not trusted: every answer has a deadline, ids and sizes were
//! limited by the transport, and texts are cleaned before anyone shows them.

use std::time::Duration;

use casemate_protocol::{
    VERSIONS, VersionMismatch,
    agent::{self, ContainerRef, ProcessRef},
    agent_ttrpc::AgentClient,
    negotiate,
};
use ttrpc::{Code, asynchronous::transport::Socket, context};

/// Longest text of a guest's error that is shown, in characters.
const MAX_TEXT: usize = 1024;

/// A request that the agent did not fulfil.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The agent's own refusal, with its code.
    #[error("{text}")]
    Refused {
        /// ttrpc code.
        code: Code,
        /// What it says, cleaned.
        text: String,
    },
    /// No answer in time.
    #[error("the agent did not answer {request} within {limit:?}")]
    Timeout {
        /// Name of the request.
        request: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The connection broke, usually because the VM has ended.
    #[error("the connection to the agent broke during {request}: {text}")]
    Lost {
        /// Name of the request.
        request: &'static str,
        /// What the transport said.
        text: String,
    },
    /// No common protocol version.
    #[error(transparent)]
    Version(#[from] VersionMismatch),
}

/// A connection to the agent.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    limit: Duration,
}

/// Defines a request that is answered within the limit.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)*) => {
        impl Agent {
            $(
                $(#[$doc])*
                pub async fn $name(&self, request: &agent::$request) -> Result<agent::$response, Error> {
                    let answer = self.client.$name(self.deadline(), request).await;
                    answer.map_err(|error| self.error(stringify!($name), error))
                }
            )*
        }
    };
}

requests! {
    /// Makes the VM one that can be saved; the agent hangs up and calls again.
    become_template(Empty) -> Empty;
    /// Prepares the VM for its first container.
    prepare_sandbox(PrepareSandboxRequest) -> PrepareSandboxResponse;
    /// Makes a container with its waiting init.
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    /// Adds a waiting process to a container.
    add_process(AddProcessRequest) -> AddProcessResponse;
    /// Lets a waiting process run.
    start_process(ProcessRef) -> StartProcessResponse;
    /// Sends a signal.
    signal_process(SignalProcessRequest) -> Empty;
    /// Sets the size of a terminal.
    resize_terminal(ResizeTerminalRequest) -> Empty;
    /// Stops the processes of a container, or lets them go on.
    freeze_container(FreezeContainerRequest) -> Empty;
    /// Changes settings of a container's cgroup.
    update_container(UpdateContainerRequest) -> Empty;
    /// Reads what a container has used.
    container_stats(ContainerRef) -> ContainerStatsResponse;
    /// Lists the processes of a container.
    list_processes(ContainerRef) -> ListProcessesResponse;
    /// Forgets an ended exec process.
    remove_process(ProcessRef) -> Empty;
    /// Removes a container.
    remove_container(ContainerRef) -> Empty;
    /// Makes the guest's network.
    update_network(UpdateNetworkRequest) -> UpdateNetworkResponse;
    /// Powers the VM off.
    shutdown(Empty) -> Empty;
}

impl Agent {
    /// Greets the agent on a fresh connection.
    ///
    /// # Errors
    /// [`Error::Version`] when the guest is of another build; no answer.
    pub async fn greet(
        socket: Socket,
        limit: Duration,
    ) -> Result<(Self, agent::HelloResponse), Error> {
        let agent = Self {
            client: AgentClient::new(ttrpc::asynchronous::Client::new(socket)),
            limit,
        };
        let request = agent::HelloRequest {
            min_version: *VERSIONS.start(),
            max_version: *VERSIONS.end(),
            ..Default::default()
        };
        let answer = agent.client.hello(agent.deadline(), &request).await;
        let hello = answer.map_err(|error| agent.error("hello", error))?;
        negotiate(hello.version, hello.version)?;
        Ok((agent, hello))
    }

    /// Waits for the end of a process; no deadline.
    ///
    /// # Errors
    /// When the process is not known or the connection breaks.
    pub async fn wait_process(
        &self,
        process: &ProcessRef,
    ) -> Result<agent::WaitProcessResponse, Error> {
        let answer = self
            .client
            .wait_process(context::with_timeout(0), process)
            .await;
        answer.map_err(|error| self.error("wait_process", error))
    }

    /// Waits until the guest has killed a process of a container for want of
    /// memory (true), or the container has ended.
    ///
    /// # Errors
    /// When the container is not known or the connection breaks.
    pub async fn await_out_of_memory(&self, container: &ContainerRef) -> Result<bool, Error> {
        let answer = self
            .client
            .await_out_of_memory(context::with_timeout(0), container)
            .await;
        answer
            .map(|answer| answer.killed)
            .map_err(|error| self.error("await_out_of_memory", error))
    }

    /// The same agent for a request that may take longer than others.
    pub fn with_more_time(&self, more: Duration) -> Self {
        Self {
            limit: self.limit.saturating_add(more),
            ..self.clone()
        }
    }

    fn deadline(&self) -> context::Context {
        context::with_duration(self.limit)
    }

    fn error(&self, request: &'static str, error: ttrpc::Error) -> Error {
        match error {
            ttrpc::Error::RpcStatus(status) if status.code() == Code::DEADLINE_EXCEEDED => {
                Error::Timeout {
                    request,
                    limit: self.limit,
                }
            }
            ttrpc::Error::RpcStatus(status) => Error::Refused {
                code: status.code(),
                text: printable(status.message()),
            },
            other => Error::Lost {
                request,
                text: printable(&other.to_string()),
            },
        }
    }
}

/// Text of the guest as it may be shown in a terminal or a log: one line, no
/// control characters, not endless.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_draw_on_the_terminal() {
        assert_eq!(printable("no\u{1b}[2J\nfile"), "no [2J file");
        assert_eq!(printable(&"x".repeat(5000)).len(), MAX_TEXT);
    }
}
