//! The plugin's side: a short-lived process that the runtime calls with CNI_* variables and a configuration on
//! standard input. It only carries the request to the agent, which does the work.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::protocol::{
    CniError, Code, MAX_MESSAGE_BYTES, NetworkConfiguration, Request, SUPPORTED_VERSIONS, is_container_id,
    is_interface_name, parse_args,
};

/// How long the agent may take for one request: longer than its own bound on identity and datapath.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// Serves one CNI call from the process's environment, standard input and output: what `tombolo` does when
/// CNI_COMMAND is set, and `tombolo cni`.
#[must_use]
pub fn run() -> ExitCode {
    let mut input = Vec::new();
    let limit = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
    let read = std::io::stdin().lock().take(limit + 1).read_to_end(&mut input);
    let outcome = read
        .map_err(|error| {
            CniError::new(
                Code::Io,
                "cannot read the network configuration from standard input",
                error.to_string(),
            )
        })
        .and_then(|_| serve(&|name| std::env::var(name).ok(), &input));
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => {
            let fallback = format!("{{\"code\":{},\"msg\":\"{}\"}}", error.code, "unprintable error");
            (serde_json::to_string(&error).unwrap_or(fallback), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One CNI call: `variable` gives the environment, `input` is the configuration. The answer is to be printed; DEL, CHECK,
/// GC and STATUS have none.
///
/// # Errors
/// The CNI error to print.
pub fn serve(variable: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let command = variable("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        return Ok(Some(version(input)));
    }
    let mut version = String::new();
    let outcome = read_configuration(input).and_then(|configuration| {
        version.clone_from(&configuration.cni_version);
        check_version(&configuration)?;
        forward(&command, variable, configuration)
    });
    outcome.map_err(|error| CniError { cni_version: reply_version(&version), ..error })
}

/// The answer to VERSION; asked in whatever version, it is answered in that.
fn version(input: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|value| value.get("cniVersion")?.as_str().map(str::to_owned))
        .unwrap_or_default();
    json!({ "cniVersion": reply_version(&asked), "supportedVersions": SUPPORTED_VERSIONS })
}

fn reply_version(asked: &str) -> String {
    let newest = SUPPORTED_VERSIONS.last().copied().unwrap_or_default();
    if asked.is_empty() { newest.to_owned() } else { asked.to_owned() }
}

fn read_configuration(input: &[u8]) -> Result<NetworkConfiguration, CniError> {
    if input.len() > MAX_MESSAGE_BYTES {
        let details = format!("it is longer than {MAX_MESSAGE_BYTES} bytes");
        return Err(CniError::new(Code::Decode, "cannot read the network configuration", details));
    }
    serde_json::from_slice(input).map_err(|error| {
        CniError::new(Code::Decode, "cannot read the network configuration as JSON", error.to_string())
    })
}

fn check_version(configuration: &NetworkConfiguration) -> Result<(), CniError> {
    if SUPPORTED_VERSIONS.contains(&configuration.cni_version.as_str()) {
        return Ok(());
    }
    let details = format!("supported are {}; set cniVersion in the .conflist", SUPPORTED_VERSIONS.join(", "));
    let msg = format!("CNI version `{}` is not supported", configuration.cni_version);
    Err(CniError::new(Code::IncompatibleVersion, msg, details))
}

fn forward(
    command: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    configuration: NetworkConfiguration,
) -> Result<Option<Value>, CniError> {
    let socket = configuration.socket.clone();
    let path = match command {
        "ADD" => "/v1/cni/add",
        "DEL" => "/v1/cni/del",
        "CHECK" => "/v1/cni/check",
        "GC" => "/v1/cni/gc",
        "STATUS" => "/v1/cni/status",
        other => {
            let details = "it must be ADD, DEL, CHECK, GC, STATUS or VERSION".to_owned();
            return Err(CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_COMMAND is `{other}`"),
                details,
            ));
        }
    };
    let request = if matches!(command, "GC" | "STATUS") {
        let none = String::new();
        Request {
            container_id: none.clone(),
            ifname: none,
            netns: None,
            args: Default::default(),
            configuration,
        }
    } else {
        read_environment(command, variable, configuration)?
    };
    let body = serde_json::to_vec(&request)
        .map_err(|error| CniError::new(Code::Io, "cannot write the request", error.to_string()))?;
    let answer = post(&socket, path, &body)?;
    if command == "ADD" {
        return serde_json::from_slice(&answer).map(Some).map_err(|error| {
            CniError::new(Code::Decode, "cannot read the agent's answer", error.to_string())
        });
    }
    Ok(None)
}

fn read_environment(
    command: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    configuration: NetworkConfiguration,
) -> Result<Request, CniError> {
    let wrong = |name: &str, reason: &str| {
        CniError::new(Code::InvalidEnvironment, format!("{name} is missing or wrong"), reason.to_owned())
    };
    let container_id = variable("CNI_CONTAINERID").unwrap_or_default();
    if !is_container_id(&container_id) {
        return Err(wrong(
            "CNI_CONTAINERID",
            "it must begin with a letter or digit; letters, digits, `_.-` follow",
        ));
    }
    let ifname = variable("CNI_IFNAME").unwrap_or_default();
    if !is_interface_name(&ifname) {
        return Err(wrong(
            "CNI_IFNAME",
            "an interface name has 1 to 15 bytes, without slash, colon or space",
        ));
    }
    let netns = variable("CNI_NETNS").filter(|path| !path.is_empty());
    if netns.is_none() && command != "DEL" {
        return Err(wrong("CNI_NETNS", "it must be the path of the pod's network namespace"));
    }
    let args = parse_args(&variable("CNI_ARGS").unwrap_or_default())?;
    Ok(Request { container_id, ifname, netns, args, configuration })
}

/// Posts a JSON body to the agent over HTTP/1.1 on its unix socket and gives back the body of a 200. Another status
/// carries a [`CniError`].
fn post(socket: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, CniError> {
    let msg = || format!("cannot ask the agent at {socket}");
    let later = |error: std::io::Error| {
        let details = format!("{error}; see whether `tombolo agent` runs (tombolo status)");
        CniError::new(Code::TryAgainLater, msg(), details)
    };
    let mut stream = UnixStream::connect(socket).map_err(later)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(later)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(later)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: tombolo\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(later)?;
    let mut answer = Vec::new();
    let limit = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut answer).map_err(later)?;
    // An agent that was killed in between closes the connection early: the call may simply be repeated.
    let Some((status, content)) = split_answer(&answer) else {
        let details = "the answer broke off; the agent was probably restarted".to_owned();
        return Err(CniError::new(Code::TryAgainLater, msg(), details));
    };
    if status == 200 {
        return Ok(content.to_vec());
    }
    Err(serde_json::from_slice(content).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(content).chars().take(300).collect();
        CniError::new(Code::TryAgainLater, msg(), format!("it answered {status}: {text}"))
    }))
}

/// Status and body of an HTTP/1.1 answer with a Content-Length; none if it is not whole.
fn split_answer(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let content = answer.get(end + 4..)?;
    match length {
        Some(length) => content.get(..length).map(|content| (status, content)),
        None => Some((status, content)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn call(variables: &[(&str, &str)], input: &str) -> Result<Option<Value>, CniError> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        serve(&variable, input.as_bytes())
    }

    const GOOD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
    ];

    fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        GOOD.into_iter().filter(|(key, _)| *key != name).chain([(name, value)]).collect()
    }

    #[test]
    fn version_is_answered_in_the_version_asked() {
        let answer = call(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"0.4.0"}"#).unwrap().unwrap();
        assert_eq!(answer, json!({"cniVersion": "0.4.0", "supportedVersions": ["1.0.0", "1.1.0"]}));
        let answer = call(&[("CNI_COMMAND", "VERSION")], "").unwrap().unwrap();
        assert_eq!(answer["cniVersion"], "1.1.0");
    }

    #[test]
    fn wrong_calls_get_the_specified_codes() {
        let configuration = r#"{"cniVersion":"1.1.0","socket":"/nonexistent/agent.sock"}"#;
        let code = |variables: &[(&str, &str)], input: &str| call(variables, input).unwrap_err().code;
        assert_eq!(code(&GOOD, "{"), 6);
        assert_eq!(code(&GOOD, r#"{"cniVersion":"0.4.0"}"#), 1);
        assert_eq!(code(&with("CNI_COMMAND", "PUT"), configuration), 4);
        assert_eq!(code(&with("CNI_CONTAINERID", "../x"), configuration), 4);
        assert_eq!(code(&with("CNI_IFNAME", ""), configuration), 4);
        assert_eq!(code(&with("CNI_NETNS", ""), configuration), 4);
        assert_eq!(code(&with("CNI_ARGS", "x"), configuration), 4);
        let error = call(&GOOD, configuration).unwrap_err();
        assert_eq!((error.code, error.cni_version.as_str()), (11, "1.1.0"));
        assert!(error.details.contains("tombolo agent"), "{error}");
    }

    /// Answers one connection with `answer` after reading the whole request; gives back the request's body.
    fn agent(answer: &'static str) -> (String, std::thread::JoinHandle<Value>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let length = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..length]);
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    assert!(head.starts_with("POST /v1/cni/add HTTP/1.1"), "{head}");
                    if let Ok(body) = serde_json::from_str(body) {
                        stream.write_all(answer.as_bytes()).unwrap();
                        return body;
                    }
                }
            }
        });
        (path.display().to_string(), served, directory)
    }

    #[test]
    fn a_result_and_an_error_of_the_agent_come_through() {
        let (socket, served, _kept) =
            agent("HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{\"cniVersion\":\"1.1.0\"}\nrest");
        let configuration = format!(r#"{{"cniVersion":"1.1.0","socket":"{socket}"}}"#);
        let answer = call(&GOOD, &configuration).unwrap().unwrap();
        assert_eq!(answer, json!({"cniVersion": "1.1.0"}));
        let request = served.join().unwrap();
        assert_eq!(request["containerId"], "c1");
        assert_eq!(request["args"]["K8S_POD_NAME"], "web");

        let (socket, served, _kept) = agent(
            "HTTP/1.1 503 Unavailable\r\n\r\n{\"code\":101,\"msg\":\"full\",\"details\":\"no address\"}",
        );
        let configuration = format!(r#"{{"cniVersion":"1.0.0","socket":"{socket}"}}"#);
        let error = call(&GOOD, &configuration).unwrap_err();
        served.join().unwrap();
        assert_eq!((error.code, error.cni_version.as_str()), (101, "1.0.0"));
    }

    #[test]
    fn an_answer_that_breaks_off_means_try_again() {
        let (socket, served, _kept) = agent("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"cniVer");
        let configuration = format!(r#"{{"cniVersion":"1.1.0","socket":"{socket}"}}"#);
        assert_eq!(call(&GOOD, &configuration).unwrap_err().code, 11);
        served.join().unwrap();
    }
}
