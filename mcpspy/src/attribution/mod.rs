//! Who is who: facts about processes become what events say of them.
//!
//! Pure: facts are pushed, nothing is asked. Stands left of `session`, because whether a stream
//! belongs to a session depends on which processes are related.

mod registry;
mod return_path;

pub use registry::Registry;
pub use return_path::{ReturnPath, return_path};
