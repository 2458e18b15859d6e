//! What an image name stands for: there is no registry, so an image is a built-in program or the host's own files.

use k8s_openapi::api::core::v1::Container;

/// Our own executable, inside a container.
const OWN_PATH: &str = "/usr/local/bin/podwire";
/// The port that the web app listens on when its container declares none.
const WEB_PORT: i32 = 80;

/// What to run for a container, before `$(VAR)` expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Path or name of the executable, then its arguments.
    pub argv: Vec<String>,
    /// What `status.containerStatuses[].imageID` says.
    pub image_id: String,
    /// The TCP port that the program opens before it is of any use: the built-in web app's.
    pub listens_on: Option<u16>,
}

/// Finds what to run for `container`; otherwise says why there is nothing, for `ErrImagePull`.
pub fn resolve(container: &Container) -> Result<Program, String> {
    let image = container.image.as_deref().unwrap_or_default();
    let command = container.command.clone().unwrap_or_default();
    let args = container.args.clone().unwrap_or_default();
    let (name, tag) = split(image);
    if !command.is_empty() {
        let argv = command.into_iter().chain(args).collect();
        return Ok(Program { argv, image_id: image_id(name, tag), listens_on: None });
    }
    match (name, tag) {
        ("podwire", tag) => {
            let argv = [OWN_PATH.to_owned()].into_iter().chain(args).collect();
            Ok(Program { argv, image_id: image_id(name, tag), listens_on: None })
        }
        ("myapp", "v1" | "v2") if !args.is_empty() => {
            // The real image has a CMD and no ENTRYPOINT: arguments alone replace the whole command.
            Ok(Program { argv: args, image_id: image_id(name, tag), listens_on: None })
        }
        ("myapp", version @ ("v1" | "v2")) => web_app(container, version),
        ("myapp", tag) => {
            Err(format!("failed to pull image {image:?}: the built-in web app has the tags v1 and v2, not {tag:?}"))
        }
        _ => Err(format!(
            "failed to pull image {image:?}: a lab has no registry; use the built-in images podwire, myapp:v1 or \
             myapp:v2, or give the container a command to run from the host's files"
        )),
    }
}

fn web_app(container: &Container, version: &str) -> Result<Program, String> {
    let ports = container.ports.as_deref().unwrap_or_default();
    let is_tcp = |protocol: Option<&str>| protocol.is_none_or(|p| p == "TCP");
    let port = ports.iter().find(|p| is_tcp(p.protocol.as_deref())).map_or(WEB_PORT, |p| p.container_port);
    let port = u16::try_from(port).map_err(|_| format!("containerPort {port} is out of range: expected 1 to 65535"))?;
    let argv = [OWN_PATH, "myapp", "--version", version, "--port", &port.to_string()].map(str::to_owned).to_vec();
    Ok(Program { argv, image_id: image_id("myapp", version), listens_on: Some(port) })
}

/// Name without registry and well-known owner, and tag.
fn split(image: &str) -> (&str, &str) {
    let image = image.split_once('@').map_or(image, |(name, _digest)| name);
    let mut name = image;
    for prefix in ["docker.io/", "index.docker.io/", "library/", "ikubernetes/", "podwire/"] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, "latest"),
    }
}

fn image_id(name: &str, tag: &str) -> String {
    match name {
        "podwire" | "myapp" => format!("built-in/{name}:{tag}"),
        _ => "host-files".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;

    fn container(image: &str, command: &[&str], args: &[&str], port: Option<i32>) -> Container {
        let strings = |list: &[&str]| (!list.is_empty()).then(|| list.iter().map(|s| (*s).to_owned()).collect());
        Container {
            image: Some(image.into()),
            command: strings(command),
            args: strings(args),
            ports: port.map(|p| vec![ContainerPort { container_port: p, ..Default::default() }]),
            ..Default::default()
        }
    }

    #[test]
    fn images_and_what_they_run() {
        let web2 = format!("{OWN_PATH} myapp --version v2 --port 80");
        let web1 = format!("{OWN_PATH} myapp --version v1 --port 8080");
        let agent = format!("{OWN_PATH} kube-proxy --config=x");
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Option<i32>, &'a str);
        let rows: &[Row] = &[
            ("myapp:v2", &[], &[], None, &web2),
            ("ikubernetes/myapp:v2", &[], &[], Some(80), &web2),
            ("docker.io/ikubernetes/myapp:v1", &[], &[], Some(8080), &web1),
            ("myapp:v1", &["sleep"], &["1"], Some(8080), "sleep 1"),
            ("myapp:v1", &[], &["sleep", "1"], None, "sleep 1"),
            ("podwire", &[], &["kube-proxy", "--config=x"], None, &agent),
            ("podwire:0.1", &["sh", "-c"], &["true"], None, "sh -c true"),
            ("registry:5000/busybox", &["ls"], &[], None, "ls"),
        ];
        for (image, command, args, port, expected) in rows {
            let program = resolve(&container(image, command, args, *port)).unwrap();
            assert_eq!(program.argv.join(" "), *expected, "{image}");
        }
        assert_eq!(resolve(&container("myapp:v1", &[], &[], Some(8080))).unwrap().listens_on, Some(8080));
    }

    #[test]
    fn what_cannot_be_pulled_says_why() {
        let message = |image| resolve(&container(image, &[], &[], None)).unwrap_err();
        assert!(message("nginx:1.27").contains("has no registry"));
        assert!(message("myapp:v3").contains("tags v1 and v2"));
        assert!(message("myapp").contains("\"latest\""));
        assert!(message("registry:5000/app").contains("registry:5000/app"));
    }
}
