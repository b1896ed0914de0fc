//! The Monitor service.

use async_trait::async_trait;
use casemate_protocol::{
    monitor::{TimelineRequest, TimelineResponse, TimelineSpan},
    monitor_ttrpc::Monitor,
};
use casemate_sandbox::Handle;
use ttrpc::asynchronous::TtrpcContext;

use crate::status;

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
            ..Default::default()
        });
        Ok(TimelineResponse {
            spans: spans.collect(),
            ..Default::default()
        })
    }
}
