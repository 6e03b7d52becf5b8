"""Every cure that `kiln doctor` names. docs/troubleshooting.md has each of them, and a test compares the two.

`fails` is false for a warning: Kiln still works.
"""

from __future__ import annotations

from typing import NamedTuple


class Cure(NamedTuple):
    text: str
    """For `str.format`, with the fields that the symptom gives."""
    fails: bool = True


# Of any probe
NO_ANSWER = Cure("Look whether a firewall or network policy drops the connection without an answer; then try again.")
AS_IT_SAYS = Cure("Find the sentence in docs/troubleshooting.md.")
UNKNOWN = Cure("Report this as a bug of Kiln, with the type of the error.")

# Configuration, secrets, the state folder
CONFIGURATION = Cure("Correct what the sentence names, and run `kiln check` until it finds nothing.")
SECRETS_READABLE = Cure("Keep the secrets from other users of this machine: chmod -R o= {folder}", fails=False)
STATE_DENIED = Cure("Give the folder to the user who runs Kiln (chown), or set KILN_STATE_DIR to another one.")
TOKEN_FILE = Cure("Remove the file; `kiln serve` makes another one. Clients need the new token then.")
STATE_FULL = Cure("Free space on that disk, or set KILN_STATE_DIR to a folder on another one.")
STATE_NEARLY_FULL = Cure("Free space on that disk soon: Kiln cannot record builds on a full one.", fails=False)
STATE_NO_INODES = Cure("Delete files on that disk: no more can be created, however small.")
STATE_FEW_INODES = Cure("Delete files on that disk soon: few more can be created, however small.", fails=False)

# Programs and daemons
GIT_MISSING = Cure("Install git {least} or newer, and start Kiln with it on PATH.")
GIT_OLD = Cure("Upgrade git to {least} or newer.")
REPO2DOCKER = Cure("Install Kiln again in its environment: `pip install --force-reinstall kiln-images`.")
DOCKER_MISSING = Cure("Install Docker Engine, and start Kiln with the `docker` command on PATH.")
DOCKER_DOWN = Cure("Start the Docker daemon (`systemctl start docker`), or set KILN_DOCKER_HOST to its address.")
DOCKER_DENIED = Cure("Add the user who runs Kiln to the socket's group (`usermod -aG docker USER`), and log in again.")
BUILDX_MISSING = Cure("Install Docker's buildx plugin (the package docker-buildx-plugin or docker-buildx).")
BUILDX_OLD = Cure("Upgrade Docker's buildx plugin to {least} or newer.")
PODMAN_MISSING = Cure("Install podman or podman-remote, and start Kiln with it on PATH.")
PODMAN_DOWN = Cure("Start the Podman service (`systemctl start podman.socket`), or set KILN_DOCKER_HOST.")
PODMAN_DENIED = Cure("Give the user who runs Kiln access to the socket, or use a Podman service of that user.")
DAEMON_FULL = Cure("Free space on the daemon's disk: `{client} system prune --all` deletes what no container uses.")
DAEMON_NEARLY_FULL = Cure(
    "Free space soon, or limit the build cache: `{client} system prune` deletes what nothing uses.", fails=False
)

# Registries
REGISTRY_LOGIN = Cure("Log in again with the right user and password or token: `docker login {registry}`")
REGISTRY_NO_LOGIN = Cure("Log in as a user who may push: `docker login {registry}`, or set KILN_REGISTRY_CONFIG.")
REGISTRY_DENIED = Cure("Let this account push to {prefix}, or set KILN_IMAGE_PREFIX to a place where it may.")
REGISTRY_PLAIN = Cure("Serve the registry over HTTPS, or add '{registry}' to insecure_registries in KILN_CONFIG.")
REGISTRY_CERTIFICATE = Cure("Add the registry's certificate authority to those that this machine trusts.")
REGISTRY_UNREACHABLE = Cure("Start the registry, or correct KILN_IMAGE_PREFIX, DNS or the proxy of this machine.")
REGISTRY_REFUSES = Cure("Look at the registry's log: it understood the push of an empty image and refused it.")

# Git hosts
REPOSITORY_HIDDEN = Cure("Check the repository's address, and give a credential that may read it in git-credentials.")
GIT_CREDENTIAL = Cure("Replace the credential in git-credentials: the Git host does not accept it.")
GIT_CREDENTIAL_UNUSED = Cure("Name the host in KILN_ALLOWED_REPOSITORIES, or remove the line from git-credentials.")
GIT_HOST = Cure("Check that this machine reaches the Git host: DNS, firewall, HTTPS_PROXY and certificates.")

# Sinks, statuses, JupyterHub, OIDC issuers
SINK_DENIED = Cure("Correct the headers in headers/{sink}: the sink does not accept them.")
SINK_ADDRESS = Cure("Set the sink's url to the address that it redirects to.")
SINK_DOWN = Cure("Start the sink, or correct its url, `ca`, DNS or the proxy of this machine.")
STATUS_LOGIN = Cure("Replace the credential in statuses/{host}: the Git host does not accept it.")
STATUS_NO_LOGIN = Cure("Put a credential in statuses/{host}, and name the host in KILN_ALLOWED_REPOSITORIES.")
STATUS_HOST = Cure("Check that this machine reaches the Git host's API: address, DNS, firewall and HTTPS_PROXY.")
HUB_TOKEN = Cure("Set JUPYTERHUB_API_TOKEN to the token that the Hub has for this service.")
HUB_DOWN = Cure("Start the JupyterHub, or correct JUPYTERHUB_API_URL.")
ISSUER = Cure("Correct the issuer's address, or let this machine reach ISSUER/.well-known/openid-configuration.")

# Kubernetes
API_UNREACHABLE = Cure("Run it in a pod of the release, or where `kubectl` works with the same kubeconfig.")
API_LOGIN = Cure("Mount the service account's token into the pod, or renew the credentials of the kubeconfig.")
PERMISSIONS = Cure("Bind the chart's Role to this service account again: `helm upgrade` restores it.")
ANCHOR = Cure("Restore the release's own objects: `helm upgrade` makes them again.")
NOT_PRIVILEGED = Cure("kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged")
NO_DAEMON = Cure("Make a node match dockerd.nodeSelector and dockerd.tolerations of the chart.")
DAEMON_NOT_READY = Cure("Look why: `kubectl -n {namespace} describe pod -l app.kubernetes.io/component=dockerd`")
SOME_DAEMONS_NOT_READY = Cure(
    "Builds run on the other nodes. Look why: `kubectl -n {namespace} describe pod"
    " -l app.kubernetes.io/component=dockerd`",
    fails=False,
)

# Clock, webhooks
CLOCK_OFF = Cure("Set this machine's clock by NTP (`timedatectl set-ntp true`).")
CLOCK_DRIFTS = Cure(
    "Have NTP set this machine's clock before it is minutes off (`timedatectl set-ntp true`).", fails=False
)
CLOCKS_OF_HOSTS = Cure("Have the clock of the named host set by NTP; this machine agrees with others.", fails=False)
NO_WEBHOOK = Cure(
    "Add a webhook at the Git host, with the address {address} and the secret; docs/webhooks.md says how.", fails=False
)

# A Kiln that runs elsewhere
SERVER_DOWN = Cure("Correct KILN_SERVER (or --server), or start the server: `kiln serve`.")
SERVER_CERTIFICATE = Cure("Add the server's certificate authority to those trusted here (REQUESTS_CA_BUNDLE).")
NOT_KILN = Cure("Give Kiln's whole address, with its base path, as KILN_SERVER (or --server).")
TOKEN_MISSING = Cure("Give an API token: KILN_TOKEN, --token-file, or `token_file` in the profile.")
TOKEN_REFUSED = Cure("Ask the server's operator for an API token, and give it as KILN_TOKEN or --token-file.")
NOT_READY = Cure("Run `kiln doctor` on the server's machine: the named part does not answer there.")
VERSIONS_DIFFER = Cure("Install the same version here: `pip install kiln-images=={version}`", fails=False)
