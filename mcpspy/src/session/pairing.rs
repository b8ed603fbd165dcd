//! Requests that wait for their response.
//!
//! Ids are matched per session and per direction of the request, typed (`1` is not `"1"`), and never
//! by time: a slow response is paired like a quick one. Both sides of a session count from 0, so the
//! two directions never mix.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{RequestId, RequestRef};

/// Requests that may wait in one direction. A client that sends thousands of calls without waiting
/// is real; beyond this the oldest eighth is given up.
const REQUESTS: usize = 16_384;

/// Text of `params` kept for the responses of one direction, bytes. Beyond it requests are kept
/// without their params.
const PARAMS: usize = 1 << 20;

/// Requests of one direction of a session.
#[derive(Debug, Default)]
pub(super) struct Pending {
    requests: HashMap<RequestId, Arc<RequestRef>>,
    params: usize,
}

impl Pending {
    /// A request was sent. Returns how many earlier ones were given up for it: the one whose id it
    /// takes, or the oldest where there are too many.
    pub(super) fn sent(&mut self, mut request: RequestRef) -> u64 {
        let mut given_up = 0;
        if self.requests.len() >= REQUESTS {
            let mut oldest: Vec<_> =
                self.requests.values().map(|request| (request.seq, request.id.clone())).collect();
            oldest.sort_unstable();
            for (_, id) in oldest.into_iter().take(REQUESTS / 8) {
                given_up += u64::from(self.answered(&id).is_some());
            }
        }
        given_up += u64::from(self.answered(&request.id).is_some());
        let size = request.params.as_ref().map_or(0, |params| params.len());
        if self.params + size > PARAMS {
            request.params = None;
        } else {
            self.params += size;
        }
        self.requests.insert(request.id.clone(), Arc::new(request));
        given_up
    }

    /// A response was seen: the request that it answers.
    pub(super) fn answered(&mut self, id: &RequestId) -> Option<Arc<RequestRef>> {
        let request = self.requests.remove(id)?;
        self.params -= request.params.as_ref().map_or(0, |params| params.len());
        Some(request)
    }

    /// Whether a request with this id waits.
    pub(super) fn waits_for(&self, id: &RequestId) -> bool {
        self.requests.contains_key(id)
    }

    /// Number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn request(seq: u64, id: RequestId) -> RequestRef {
        RequestRef {
            at: Timestamp(seq),
            seq,
            id,
            method: "ping".into(),
            params: Some("{}".into()),
            target: None,
        }
    }

    #[test]
    fn ids_are_typed() {
        let mut pending = Pending::default();
        pending.sent(request(1, RequestId::Integer(1)));
        pending.sent(request(2, RequestId::String("1".into())));
        assert_eq!(pending.answered(&RequestId::String("1".into())).map(|r| r.seq), Some(2));
        assert_eq!(pending.answered(&RequestId::Integer(1)).map(|r| r.seq), Some(1));
        assert_eq!(pending.answered(&RequestId::Integer(1)), None);
        assert_eq!(pending.params, 0);
    }

    #[test]
    fn the_oldest_are_given_up_first() {
        let mut pending = Pending::default();
        for seq in 0..=REQUESTS as u64 {
            let given_up = pending.sent(request(seq, RequestId::Integer(seq.cast_signed())));
            assert_eq!(given_up, if seq == REQUESTS as u64 { REQUESTS as u64 / 8 } else { 0 });
        }
        assert!(!pending.waits_for(&RequestId::Integer(0)));
        assert!(pending.waits_for(&RequestId::Integer((REQUESTS as u64).cast_signed())));
    }

    #[test]
    fn an_id_used_again_is_the_new_request() {
        let mut pending = Pending::default();
        pending.sent(request(1, RequestId::Integer(0)));
        assert_eq!(pending.sent(request(2, RequestId::Integer(0))), 1);
        assert_eq!(pending.answered(&RequestId::Integer(0)).map(|r| r.seq), Some(2));
    }
}
