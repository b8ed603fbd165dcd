//! Rebuilds the object when the linker changes: it decides what the object looks like.

fn main() {
    if let Ok(linker) = which::which("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
    println!("cargo:rerun-if-changed=src");
}
