//! Builds the kernel programs, where the toolchain for that is there.
//!
//! A debug build without it works, with a warning and without the programs (`cfg(mcpspy_no_bpf)`),
//! so that everything but the kernel side can be built and tested on stable. A release build
//! without them would be of no use to anybody and fails.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(mcpspy_no_bpf)");
    #[cfg(feature = "live")]
    bpf::build();
}

#[cfg(feature = "live")]
mod bpf {
    use std::env;
    use std::path::Path;
    use std::process::{Command, Stdio};

    /// Name of the toolchain that builds the programs: `-Z build-std` needs nightly.
    const TOOLCHAIN: &str = "nightly";
    /// Leaves the programs out.
    const SKIP: &str = "MCPSPY_SKIP_BPF";
    /// Only these change the object; without them cargo would run this for any change.
    const SOURCES: [&str; 2] = ["../mcpspy-ebpf", "../mcpspy-common"];

    pub(super) fn build() {
        println!("cargo:rerun-if-env-changed={SKIP}");
        for source in SOURCES {
            println!("cargo:rerun-if-changed={source}");
        }
        if env::var(SKIP).is_ok_and(|value| value == "1") {
            return without("left out on demand");
        }
        if let Some(lack) = missing() {
            assert!(
                env::var("PROFILE").as_deref() != Ok("release"),
                "{lack}: the kernel programs cannot be built. Run `cargo xtask setup`, or set \
                 {SKIP}=1 for a binary that can only replay"
            );
            // No such file: look again at the next build.
            println!("cargo:rerun-if-changed=.look-again");
            return without(&lack);
        }
        // Every line that cargo says inside would be a warning of the build outside.
        // SAFETY: no other thread of this script runs yet.
        unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../mcpspy-ebpf");
        let package =
            aya_build::Package { name: "mcpspy-ebpf", root_dir: root, ..Default::default() };
        if let Err(error) =
            aya_build::build_ebpf([package], aya_build::Toolchain::Custom(TOOLCHAIN))
        {
            panic!("the kernel programs could not be built: {error:#}");
        }
    }

    fn without(why: &str) {
        println!("cargo:rustc-cfg=mcpspy_no_bpf");
        println!(
            "cargo:warning=built without the kernel programs ({why}): this binary can replay, but \
             not monitor. `cargo xtask setup` brings what is missing"
        );
    }

    /// What is missing of the toolchain.
    fn missing() -> Option<String> {
        if !succeeds(Command::new("bpf-linker").arg("--version")) {
            return Some("bpf-linker is not installed".to_owned());
        }
        let sysroot = Command::new("rustup")
            .args(["run", TOOLCHAIN, "rustc", "--print", "sysroot"])
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok());
        let Some(sysroot) = sysroot else {
            return Some(format!("the toolchain `{TOOLCHAIN}` is not installed"));
        };
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        (!source.is_dir()).then(|| format!("rust-src of the toolchain `{TOOLCHAIN}` is not there"))
    }

    fn succeeds(command: &mut Command) -> bool {
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}
