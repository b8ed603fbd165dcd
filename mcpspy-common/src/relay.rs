//! Programs that only hand bytes on between a container and its client. Kernel and user space go by
//! the name of the executable file, the first at each exec, the second for what runs already.

/// Key of [`crate::names::MAP_RELAY_NAMES`]: a name, padded with NUL.
pub type NameKey = [u8; KEY];

/// Bytes of a key.
pub const KEY: usize = 32;

/// Longest name that can be one: the kernel cuts a longer one to fit into a key, and would take it
/// for another.
pub const MAX_NAME: usize = KEY - 2;

/// Value of a name that must be met whole.
pub const WHOLE: u32 = 1;
/// Value of [`PREFIX`].
pub const START: u32 = 2;

/// The only name with which others begin (`containerd-shim-runc-v2`).
pub const PREFIX: &str = "containerd-shim";

/// Names that must be met whole. What talks MCP itself, like the plugin `docker-mcp`, is none; nor is
/// `docker-init`, which runs in the container.
pub const NAMES: [&str; 20] = [
    "docker",
    "dockerd",
    "docker-compose",
    "com.docker.cli",
    "docker-proxy",
    "containerd",
    "ctr",
    "runc",
    "crun",
    "conmon",
    "podman",
    "nerdctl",
    "rootlesskit",
    "pasta",
    "slirp4netns",
    "kubelet",
    "kubectl",
    "crio",
    // The same program where the CPU has AVX2.
    "pasta.avx2",
    // Docker's helper between a rootless engine and its network.
    "vpnkit",
];

/// A name as a key; `None` where it cannot be one.
pub fn key(name: &[u8]) -> Option<NameKey> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
        return None;
    }
    let mut key = [0; KEY];
    key[..name.len()].copy_from_slice(name);
    Some(key)
}

const _: () = assert!(PREFIX.len() <= MAX_NAME);
