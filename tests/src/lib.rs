//! The stage for the end-to-end tests: real peers, the real monitor, the running kernel.
//!
//! A test starts the monitor, plays a scenario, stops the monitor, and compares what it reported
//! with what the peers themselves logged:
//!
//! ```no_run
//! use mcpspy_e2e::{Need, live, peers};
//!
//! live(&[Need::PythonV2], |stage| {
//!     let monitor = stage.monitor(&[])?;
//!     stage.play(&mut peers::python(2, "basic"))?;
//!     monitor.stop()?.expect_exactly(&stage.truth()?)
//! });
//! ```
//!
//! The monitor sees the whole host. So the tests run one at a time (a lock across processes), and
//! look at the events of the peers' own pids: what else happens on the host is not their business.
//! Nothing sleeps for luck: each wait has a condition and a deadline.

mod compare;
pub mod docker;
mod docker_expect;
mod docker_peers;
pub mod kernel;
mod monitor;
pub mod peers;
pub mod raw;
mod run;
mod stage;
mod truth;

pub use docker_expect::Place;
pub use docker_peers::{Docker, Server};
pub use monitor::{Monitor, wait_until};
pub use run::{Event, Run};
pub use stage::{Need, Stage, live, offline};
pub use truth::{Log, Mark, Session, Truth, logs, messages};
