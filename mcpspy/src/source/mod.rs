//! Where inputs come from: the running kernel, or a recording.

use std::ops::ControlFlow;

use crate::model::Input;

#[cfg(feature = "live")]
pub mod live;
pub mod replay;

/// Why a source ended early.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Pushes batches of inputs until it ends or is told to stop.
pub trait Source: Send {
    /// Runs on the calling thread. `push` takes a batch; [`ControlFlow::Break`] means that nobody
    /// wants more.
    fn run(
        &mut self,
        push: &mut dyn FnMut(Vec<Input>) -> ControlFlow<()>,
    ) -> Result<(), SourceError>;
}
