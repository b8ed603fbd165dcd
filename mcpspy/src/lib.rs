//! mcpspy watches Model Context Protocol traffic on a Linux host.

pub mod agent;
pub mod attribution;
pub mod cli;
pub mod config;
pub mod engine;
pub mod filter;
pub mod inventory;
pub mod model;
pub mod protocol;
pub mod recording;
pub mod session;
pub mod sinks;
pub mod source;
pub mod streams;
pub mod telemetry;
