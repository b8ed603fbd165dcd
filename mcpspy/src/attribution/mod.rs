//! Who is who: facts about processes and containers become what events say of them.
//!
//! Pure: facts are pushed, nothing is asked. Stands left of `session`, because whether a stream
//! belongs to a session depends on which processes are related.

mod cgroup;
mod containers;
mod registry;
mod return_path;

pub use containers::{Containers, Exec};
pub use registry::Registry;
pub use return_path::{ReturnPath, return_path};
