//! Compiles the CUDA kernels to PTX, with the feature `cuda` alone: the default build needs no compiler but rustc.
//!
//! Every `src/ops/cuda/*.cu` becomes one PTX text for compute capability 8.0, which a driver compiles for the GPU it finds,
//! newer ones included. `nvcc` is that of `NVCC`, else of `CUDA_PATH` (or `CUDA_HOME`, `CUDA_ROOT`,
//! `CUDA_TOOLKIT_ROOT_DIR`), else of `PATH`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const SOURCES: &str = "src/ops/cuda";
/// Where CUDA may be, by the names that its own tools use.
const ROOTS: [&str; 4] = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed={SOURCES}");
    for name in ROOTS.iter().chain(&["NVCC"]) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match compile_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn compile_all() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let nvcc = nvcc();
    let mut table = String::from("/// The PTX of a kernel file, by its name without an ending.\n");
    table.push_str("pub(super) fn ptx(source: &str) -> Option<&'static str> {\n    Some(match source {\n");
    for source in sources()? {
        let stem = source.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel file without a name")?;
        let ptx = out.join(format!("{stem}.ptx"));
        compile(&nvcc, &source, &ptx)?;
        writeln!(table, "        {stem:?} => include_str!({:?}),", ptx.display().to_string())
            .map_err(|e| e.to_string())?;
    }
    table.push_str("        _ => return None,\n    })\n}\n");
    let file = out.join("kernels.rs");
    std::fs::write(&file, table).map_err(|e| format!("{}: {e}", file.display()))
}

/// The kernel files in the order of their names.
fn sources() -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(SOURCES).map_err(|e| format!("{SOURCES}: {e}"))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.extension().is_some_and(|ending| ending == "cu"));
    found.sort();
    Ok(found)
}

fn nvcc() -> OsString {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc;
    }
    let in_root =
        |root: &&str| Some(Path::new(&env::var_os(root)?).join("bin").join("nvcc")).filter(|nvcc| nvcc.exists());
    ROOTS.iter().find_map(in_root).map_or_else(|| "nvcc".into(), Into::into)
}

fn compile(nvcc: &OsString, source: &Path, ptx: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-arch=compute_80", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-o"]);
    let output = command.arg(ptx).arg(source).output().map_err(|e| {
        let nvcc = nvcc.to_string_lossy();
        format!("the feature `cuda` needs NVIDIA's compiler: {nvcc}: {e}; set CUDA_PATH to where CUDA is installed")
    })?;
    if output.status.success() {
        return Ok(());
    }
    // One directive a line is all that cargo shows of a multi-line message.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    Err(format!("nvcc could not compile {}", source.display()))
}
