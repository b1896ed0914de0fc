//! The Monitor service.

use async_trait::async_trait;
use casemate_protocol::{
    monitor::{
        ContainerProcess, FiguresRequest, FiguresResponse, ProcessesRequest, ProcessesResponse,
        TimelineRequest, TimelineResponse, TimelineSpan,
    },
    monitor_ttrpc::Monitor,
};
use casemate_sandbox::{Handle, Id};
use ttrpc::asynchronous::TtrpcContext;

use crate::{metrics, status};

pub(crate) struct MonitorService {
    sandbox: Handle,
}

impl MonitorService {
    pub(crate) fn new(sandbox: Handle) -> Self {
        Self { sandbox }
    }
}

#[async_trait]
impl Monitor for MonitorService {
    async fn timeline(
        &self,
        _: &TtrpcContext,
        _: TimelineRequest,
    ) -> ttrpc::Result<TimelineResponse> {
        let spans = self.sandbox.timeline().await.map_err(status::from_error)?;
        let spans = spans.into_iter().map(|span| TimelineSpan {
            part: span.part,
            name: span.name,
            begin_ns: span.begin_ns,
            end_ns: span.end_ns,
            activity: span.activity,
            ..Default::default()
        });
        Ok(TimelineResponse {
            spans: spans.collect(),
            ..Default::default()
        })
    }

    async fn figures(
        &self,
        _: &TtrpcContext,
        request: FiguresRequest,
    ) -> ttrpc::Result<FiguresResponse> {
        let container = Id::new(&request.container_id).map_err(status::invalid)?;
        let files = self.sandbox.stats(container).await;
        let files = files.map_err(status::from_error)?;
        Ok(FiguresResponse {
            metrics: metrics::to_bytes(&files).map_err(status::internal)?,
            ..Default::default()
        })
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ProcessesRequest,
    ) -> ttrpc::Result<ProcessesResponse> {
        let container = Id::new(&request.container_id).map_err(status::invalid)?;
        let processes = self.sandbox.processes(container).await;
        let processes = processes.map_err(status::from_error)?.into_iter();
        let processes = processes.map(|process| ContainerProcess {
            pid: process.pid,
            parent: process.parent,
            uid: process.uid,
            started_at_ns: process.started_at_ns,
            cpu_ns: process.cpu_ns,
            terminal: process.terminal,
            command: process.command,
            host_pid: process.host_pid,
            ..Default::default()
        });
        Ok(ProcessesResponse {
            processes: processes.collect(),
            ..Default::default()
        })
    }
}
