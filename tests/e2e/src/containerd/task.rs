//! The task of one container, asked for without an engine between.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::{Refusal, Tasks};

/// One container's task, of some shim. The methods are those of the service; an
/// empty exec id means the container's own process.
#[derive(Clone)]
pub struct Task {
    /// The service.
    pub tasks: Tasks,
    /// The container's id.
    pub id: String,
}

/// A method for each call: its name, the service's, what is in the request
/// beside the id, and the answer.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $method:literal $request:ident
       ($($field:ident: $kind:ty),*) -> $answer:ident;)*) => {
        impl Task {
            $(
                $(#[$doc])*
                pub fn $name(&self, $($field: $kind),*) -> Result<api::$answer, Refusal> {
                    let request = api::$request {
                        id: self.id.clone(),
                        $($field: $field.into(),)*
                        ..Default::default()
                    };
                    self.tasks.call($method, &request)
                }
            )*
        }
    };
}

calls! {
    /// Makes the container, without streams.
    create = "Create" CreateTaskRequest (bundle: &str) -> CreateTaskResponse;
    /// Makes the container, with FIFOs as output.
    create_writing = "Create" CreateTaskRequest (bundle: &str, stdout: &str, stderr: &str)
        -> CreateTaskResponse;
    /// Makes the container, with options of its runtime.
    create_with = "Create" CreateTaskRequest (bundle: &str, options: MessageField<Any>)
        -> CreateTaskResponse;
    /// Lets a process go.
    start = "Start" StartRequest (exec_id: &str) -> StartResponse;
    /// Adds a process: [`process`].
    exec = "Exec" ExecProcessRequest (exec_id: &str, spec: MessageField<Any>) -> Empty;
    /// Adds a process, with a FIFO as output.
    exec_writing = "Exec" ExecProcessRequest
        (exec_id: &str, spec: MessageField<Any>, stdout: &str) -> Empty;
    /// What becomes of a process.
    state = "State" StateRequest (exec_id: &str) -> StateResponse;
    /// Waits for the end of a process.
    wait = "Wait" WaitRequest (exec_id: &str) -> WaitResponse;
    /// Sends a signal.
    kill = "Kill" KillRequest (exec_id: &str, signal: u32, all: bool) -> Empty;
    /// Removes a process that has ended.
    delete = "Delete" DeleteRequest (exec_id: &str) -> DeleteResponse;
    /// Stops all processes where they are.
    pause = "Pause" PauseRequest () -> Empty;
    /// Lets them go on.
    resume = "Resume" ResumeRequest () -> Empty;
    /// Which processes there are.
    pids = "Pids" PidsRequest () -> PidsResponse;
    /// What the container has used.
    stats = "Stats" StatsRequest () -> StatsResponse;
    /// Changes limits: [`resources`].
    update = "Update" UpdateTaskRequest (resources: MessageField<Any>) -> Empty;
    /// Ends the input.
    close_io = "CloseIO" CloseIORequest (exec_id: &str, stdin: bool) -> Empty;
    /// Changes the size of the terminal.
    resize = "ResizePty" ResizePtyRequest (exec_id: &str, width: u32, height: u32) -> Empty;
    /// Saves the container.
    checkpoint = "Checkpoint" CheckpointTaskRequest (path: &str) -> Empty;
    /// Which processes are the shim and the container.
    connect = "Connect" ConnectRequest () -> ConnectResponse;
    /// Ends the shim, if it has nothing left to do.
    shutdown = "Shutdown" ShutdownRequest (now: bool) -> Empty;
}

/// A process for [`Task::exec`]: config.md of the OCI runtime specification.
pub fn process(process: &Value) -> MessageField<Any> {
    specification("Process", process)
}

/// Limits for [`Task::update`]: config-linux.md of the OCI runtime specification.
pub fn resources(resources: &Value) -> MessageField<Any> {
    specification("LinuxResources", resources)
}

fn specification(name: &str, value: &Value) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"),
        value: value.to_string().into_bytes(),
        ..Any::default()
    })
}
