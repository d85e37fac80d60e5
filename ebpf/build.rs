//! Compiles `bpf/*.bpf.c` with clang and derives the table of sites from its `DROP(...)` and `NOTE(...)` lines.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// One `DROP(p, REASON, "why", "remedy")` of the C sources, or `NOTE(p, "why", "remedy")`, which has no reason.
struct Site {
    id: u16,
    file: String,
    line: usize,
    reason: String,
    /// What the reason stands for in events; 0: none.
    number: u8,
    why: String,
    remedy: String,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ebpf/build.rs: {message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let sources = root.join("bpf");
    println!("cargo::rerun-if-changed={}", sources.display());
    for name in ["datapath", "sock", "xdp"] {
        compile(&sources.join(format!("{name}.bpf.c")), &sources, &out.join(format!("{name}.o")))?;
    }
    let table = render(&scan(&sources)?);
    fs::write(out.join("sites.rs"), table).map_err(|e| format!("write sites.rs: {e}"))
}

fn compile(source: &Path, sources: &Path, object: &Path) -> Result<(), String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| e.to_string())?;
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let chosen = env::var("BPF_CLANG").ok();
    let candidates: Vec<&str> = match &chosen {
        Some(path) => vec![path.as_str()],
        None => vec!["clang-19", "clang"],
    };
    let mut tried = Vec::new();
    for clang in candidates {
        let result = Command::new(clang)
            .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
            .arg("-I")
            .arg(sources)
            // The asm/ headers of linux/types.h live in the multiarch folder on Debian.
            .arg("-idirafter")
            .arg(format!("/usr/include/{arch}-linux-gnu"))
            .arg("-ffile-prefix-map=".to_owned() + &sources.display().to_string() + "=bpf")
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(object)
            .output();
        match result {
            Ok(done) if done.status.success() => return Ok(()),
            Ok(done) => return Err(format!("{clang} failed:\n{}", String::from_utf8_lossy(&done.stderr))),
            Err(error) => tried.push(format!("{clang}: {error}")),
        }
    }
    Err(format!(
        "no clang could be started ({}); apt-get install clang-19, or set BPF_CLANG",
        tried.join("; ")
    ))
}

fn scan(sources: &Path) -> Result<Vec<Site>, String> {
    let mut files: Vec<PathBuf> = fs::read_dir(sources)
        .map_err(|e| format!("read {}: {e}", sources.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "c" || ext == "h"))
        .collect();
    files.sort();
    let abi = fs::read_to_string(sources.join("abi.h")).map_err(|e| format!("read abi.h: {e}"))?;
    let mut sites = Vec::new();
    for path in files {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let text = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
        scan_file(&name, &text, &mut sites)?;
    }
    for site in sites.iter_mut().filter(|site| site.reason != "NOTE") {
        let defined = abi.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
        let number = defined.into_iter().find(|(name, _)| *name == site.reason).map(|(_, number)| number);
        site.number = number
            .and_then(|number| number.trim().parse().ok())
            .ok_or(format!("{}:{}: abi.h has no number for {}", site.file, site.line, site.reason))?;
    }
    Ok(sites)
}

fn scan_file(name: &str, text: &str, sites: &mut Vec<Site>) -> Result<(), String> {
    let mut file_id: Option<u16> = None;
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if let Some(rest) = line.trim().strip_prefix("#define TB_FILE_ID ") {
            file_id =
                Some(rest.trim().parse().map_err(|e| format!("{name}:{line_number}: TB_FILE_ID: {e}"))?);
        }
        let line_of = |word: &str| line.trim_start().split_once(word).filter(|_| !line.contains("#define"));
        let Some((_, call)) = line_of(" DROP(").or_else(|| line_of("NOTE(")) else { continue };
        let id = file_id.ok_or(format!("{name}:{line_number}: DROP before TB_FILE_ID"))?;
        let site = parse_call(call)
            .ok_or(format!("{name}:{line_number}: write DROP(p, REASON, \"why\", \"remedy\") on one line"))?;
        let line_bits = u16::try_from(line_number).ok().filter(|n| *n < 2048);
        let line_bits = line_bits.ok_or(format!("{name}: more than 2047 lines, split it"))?;
        let (reason, why, remedy) = site;
        sites.push(Site {
            id: id << 11 | line_bits,
            file: name.to_owned(),
            line: line_number,
            reason,
            number: 0,
            why,
            remedy,
        });
    }
    Ok(())
}

fn parse_call(call: &str) -> Option<(String, String, String)> {
    let mut quoted = call.split('"');
    let head = quoted.next()?;
    let why = quoted.next()?;
    quoted.next()?;
    let remedy = quoted.next()?;
    let reason = head.split(',').nth(1)?.trim();
    let reason = if reason.is_empty() { "NOTE" } else { reason };
    Some((reason.to_owned(), why.to_owned(), remedy.to_owned()))
}

fn render(sites: &[Site]) -> String {
    let rows = sites.iter().map(|Site { id, file, line, reason, number, why, remedy }| {
        format!(
            "    Site {{ id: {id}, file: {file:?}, line: {line}, reason: {reason:?}, number: {number}, why: {why:?}, remedy: {remedy:?} }},\n"
        )
    });
    format!("&[\n{}]\n", rows.collect::<String>())
}
