//! `attn playground`: the lessons on position encodings, served to a browser on this machine or written for a web host.
//!
//! The page is built by `scripts/build_playground.sh`; the models and the sample text are those inside this program. Only
//! these files are served, and only on the loopback interface.

use crate::embedded::Embedded;
use crate::output::{note, print, usage, write_file, write_folder};
use crate::text::SAMPLE;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// `attn playground`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn playground
  attn playground --no-open --port 8000
  attn playground --out site               # the files for any web host

scripts/build_playground.sh builds the page; attn looks for it beside this program. It is served only to \
this machine and loads nothing from the network.")]
pub(crate) struct PlaygroundArgs {
    /// Folder that scripts/build_playground.sh wrote [default: playground, beside the program or above it]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Write the files of the page into this folder instead of serving them
    #[arg(long, value_name = "DIR", conflicts_with_all = ["port", "no_open"])]
    pub(crate) out: Option<PathBuf>,
    /// Port to serve on; 0: any free port
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) port: u16,
    /// Don't open a browser
    #[arg(long)]
    pub(crate) no_open: bool,
}

/// What makes a folder the built page.
const PROGRAM: &str = "program_bg.wasm";
/// Bytes that a request may have before its body.
const LONGEST_REQUEST: u64 = 16 << 10;
/// How long a browser may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// The page's files by their path in it.
type Files = BTreeMap<String, Cow<'static, [u8]>>;

/// Runs the command.
///
/// # Errors
/// The page has not been built, the folder can't be written, or the port can't be opened.
pub(crate) fn run(args: &PlaygroundArgs) -> Result<()> {
    let files = files(args.dir.as_deref())?;
    match &args.out {
        Some(out) => write(out, &files),
        None => serve(files, args.port, !args.no_open),
    }
}

/// The built page with the models and the sample.
fn files(dir: Option<&Path>) -> Result<Files> {
    let mut files = Files::new();
    let dir = find(dir)?;
    read(&dir, "", &mut files).with_context(|| format!("can't read {}", dir.display()))?;
    for model in Embedded::all() {
        for (name, contents) in model.everything() {
            files.insert(format!("models/{}/{name}", model.name), contents.into());
        }
    }
    files.insert("sample.txt".to_string(), SAMPLE.as_bytes().into());
    Ok(files)
}

/// The folder that was named, else one beside the program: `target/playground` for one that was built here,
/// `share/attn/playground` for one that was installed.
fn find(named: Option<&Path>) -> Result<PathBuf> {
    let build = "build it with scripts/build_playground.sh";
    if let Some(dir) = named {
        return match dir.join(PROGRAM).is_file() {
            true => Ok(dir.to_path_buf()),
            false => {
                usage(format!("--dir {}: it has no {PROGRAM}, so it is not the built page; {build}", dir.display()))
            }
        };
    }
    let program = std::env::current_exe().and_then(fs::canonicalize).context("can't tell where this program is")?;
    let beside = program.parent().unwrap_or(Path::new("."));
    let places = ["playground", "../playground", "../share/attn/playground"].map(|place| beside.join(place));
    match places.iter().find(|place| place.join(PROGRAM).is_file()) {
        Some(place) => Ok(place.clone()),
        None => bail!(
            "the page is not built: in a checkout of the project run scripts/build_playground.sh, which needs \
             `rustup target add wasm32-unknown-unknown`, or give the folder that it wrote with --dir"
        ),
    }
}

/// Reads the files under `dir`, which is `prefix` in the page.
fn read(dir: &Path, prefix: &str, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name, fs::read(entry.path())?.into());
        }
    }
    Ok(())
}

fn write(out: &Path, files: &Files) -> Result<()> {
    if out.exists() && fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
        return usage(format!("--out {} exists and is not an empty folder", out.display()));
    }
    write_folder(out, |folder| {
        for (name, contents) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            write_file(&path, |file| Ok(file.write_all(contents)?))?;
        }
        Ok(())
    })?;
    let size: usize = files.values().map(|contents| contents.len()).sum();
    print(&format!("{}: {} files, {:.1} MB\n", out.display(), files.len(), size as f64 / 1e6))
}

fn serve(files: Files, port: u16, open: bool) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("can't listen on port {port}"))?;
    let url = format!("http://{}/", listener.local_addr()?);
    print(&format!("{url}\n"))?;
    note("Ctrl-C stops it");
    if open && !show(&url) {
        note("can't start a browser: open the address above in one");
    }
    let files = Arc::new(files);
    for stream in listener.incoming() {
        // An error with one browser must not end the server.
        let (Ok(stream), files) = (stream, files.clone()) else { continue };
        let _ = std::thread::Builder::new().name("request".to_string()).spawn(move || answer(&stream, &files));
    }
    Ok(())
}

/// Opens an address in the browser, as the system does it; returns whether that was possible.
fn show(url: &str) -> bool {
    let (program, before): (_, &[&str]) = match std::env::consts::OS {
        "macos" => ("open", &[]),
        "windows" => ("cmd", &["/C", "start", ""]),
        _ => ("xdg-open", &[]),
    };
    let quiet = || Stdio::null();
    let command = Command::new(program).args(before).arg(url).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
    command.is_ok()
}

/// Answers one request and closes the connection.
fn answer(mut stream: &TcpStream, files: &Files) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 0 && !header.trim().is_empty() {
        header.clear();
    }
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let name = if path == "/" { "index.html" } else { path.trim_start_matches('/') };
    let found = files.get(name).filter(|_| ["GET", "HEAD"].contains(&method));
    let (status, kind, body): (_, _, &[u8]) = match found {
        Some(contents) => ("200 OK", kind(name), contents),
        None if method == "GET" || method == "HEAD" => ("404 Not Found", "text/plain; charset=utf-8", b"not here\n"),
        None => ("405 Method Not Allowed", "text/plain; charset=utf-8", b"only GET\n"),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-cache\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        stream.write_all(body)?;
    }
    stream.flush()
}

/// The type of a file by its name; source files are shown as text.
fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("safetensors") => "application/octet-stream",
        _ => "text/plain; charset=utf-8",
    }
}
