"""`kiln check` finds invalid configuration and accepts valid files.

It reports a mistake with its place and, if possible, the correct form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from builds.triggers import PUSHES
from kiln import check as checking
from kiln import wiring
from kiln.doctor import examine, outside
from kiln.errors import KilnError
from tests.parts.statushost import TOKEN, StatusHost

ENVIRONMENT = {"KILN_IMAGE_PREFIX": "registry.example/org/"}
PUBLIC = {"KILN_PUBLIC_URL": "http://127.0.0.1:8000"}

PEM = r"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----"

TRIGGERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # Patterns of a push
    "an exclusion alone": ("{push: {branches: ['!main']}}", ("push.branches", "begin with a pattern such as '**'")),
    "a full ref": ("{push: {branches: [refs/heads/main]}}", ("push.branches[0]", "write 'main'")),
    "a full tag": ("{push: {tags: ['refs/tags/v*']}}", ("push.tags[0]", "write 'v*'")),
    "braces": ("{push: {branches: ['{main,dev}']}}", ("push.branches[0]", "several patterns")),
    "a question mark": ("{push: {branches: ['v?']}}", ("push.branches[0]", "'?'")),
    "a plus": ("{push: {tags: ['v1+']}}", ("push.tags[0]", "write 'v1*'")),
    "any text as a regular expression": ("{push: {branches: ['.*']}}", ("push.branches[0]", "write '**'")),
    "a class": ("{push: {tags: ['v[0-9]*']}}", ("push.tags[0]", "'['")),
    "a leading slash": ("{push: {paths: ['/binder/**']}}", ("push.paths[0]", "write 'binder/**'")),
    "a leading dot": ("{push: {paths: ['./binder/**']}}", ("push.paths[0]", "write 'binder/**'")),
    "a trailing slash": ("{push: {paths: [binder/]}}", ("push.paths[0]", "write 'binder/**'")),
    "two slashes": ("{push: {paths: [binder//a]}}", ("push.paths[0]", "write 'binder/a'")),
    "a path that leaves": ("{push: {paths: ['../binder/**']}}", ("push.paths[0]", "'..'")),
    "an empty pattern": ("{push: {branches: ['']}}", ("push.branches[0]", "'**'")),
    "a blank": ("{push: {branches: ['main ']}}", ("push.branches[0]", "write 'main'")),
    "a regular expression": ("{push: {branches: ['^main']}}", ("push.branches[0]", "write 'main'")),
    "a regular expression's end": ("{push: {branches: ['feature/.*']}}", ("push.branches[0]", "write 'feature/**'")),
    "no name that git has": ("{push: {branches: ['a..b']}}", ("push.branches[0]",)),
    "no branches": ("{push: {branches: []}}", ("push.branches", "empty")),
    "no tags": ("{push: {branches: [main], tags: []}}", ("push.tags", "empty")),
    "no paths": ("{push: {paths: []}}", ("push.paths", "empty")),
    "all taken away": ("{push: {branches: [main, '!**']}}", ("push.branches", "exclude")),
    "all taken away by a like": ("{push: {tags: ['v*', '!v*']}}", ("push.tags", "exclude")),
    "paths of tags": ("{push: {tags: ['v*'], paths: ['a/**']}}", ("push.paths", "branches")),
    "no list": ("{push: {branches: main}}", ("push.branches", "[main]")),
    "a number": ("{push: {branches: [1.10]}}", ("push.branches[0]", "'1.10'")),
    "a whole number": ("{push: {tags: [2026]}}", ("push.tags[0]", "'2026'")),
    "a boolean": ("{push: {branches: [on]}}", ("push.branches[0]", "'on'")),
    "a date": ("{push: {tags: [2026-01-31]}}", ("push.tags[0]", "'2026-01-31'")),
    "nothing behind a key": ("{push: {branches: }}", ("push.branches", "is empty")),
    "an exclusion without quotes": ("{push: {branches: ['**', !wip]}}", ("Line 3", "quotes")),
    "a star without quotes": ("{push: {branches: [*]}}", ("Line 3", "quotes")),
    "a class without quotes": ("{push: {branches: [v[0-9]]}}", ("Line 3", "quotes")),
    "braces without quotes": ("{push: {branches: [{main,dev}]}}", ("push.branches[0]", "write [main, dev]")),
    "no push at all": ("{push: }", ("push", "is empty")),
    "a key of Actions": ("{push: {branches-ignore: [main]}}", ("push", "branches-ignore", "did you mean branches")),
    "a misspelt key": ("{push: {branch: [main]}}", ("push", "did you mean branches")),
    "a misspelt part": ("{filter: []}", ("did you mean filters",)),
    "the key `on`": ("{on: {branches: [main]}}", ("write it in quotes",)),
    # Pull requests
    "pushes and pull requests": ("{push: {}, pull_requests: {}}", ("pull_requests", "two triggers")),
    "a misspelt key of pull requests": ("{pull_requests: {label: [a]}}", ("pull_requests", "did you mean labels")),
    "tags of pull requests": ("{pull_requests: {tags: ['v*']}}", ("pull_requests", "tags")),
    "a full ref of pull requests": (
        "{pull_requests: {branches: [refs/heads/main]}}",
        ("pull_requests.branches[0]", "write 'main'"),
    ),
    "no branches of pull requests": ("{pull_requests: {branches: []}}", ("pull_requests.branches", "empty")),
    "paths of pull requests": ("{pull_requests: {paths: [binder/]}}", ("pull_requests.paths[0]", "write 'binder/**'")),
    "no labels": ("{pull_requests: {labels: []}}", ("pull_requests.labels", "the list is empty")),
    "a label as text": ("{pull_requests: {labels: preview}}", ("pull_requests.labels", "[preview]")),
    "from somewhere": ("{pull_requests: {from: forks}}", ("pull_requests.from", "same-repository, anyone")),
    "pull requests without a value": ("{pull_requests: }", ("pull_requests", "is empty")),
    "a misspelt section": ("{pull_request: {}}", ("did you mean pull_requests",)),
    "pull requests of pushes": (
        "{pull_requests: {}, filters: [{exact: {type: com.github.push}}]}",
        ("pull_requests", "com.github.pull_request"),
    ),
    "a number without pull requests": (
        "{push: {}, build: {tags: ['pr-{number}']}}",
        ("build.tags[0]", "pull_requests"),
    ),
    "a tag that strangers choose": (
        "{pull_requests: {from: anyone}, build: {tags: ['{head}']}}",
        ("build.tags[0]", "strangers", "{number}"),
    ),
    "an image that strangers choose": (
        "{pull_requests: {from: anyone}, build: {image: 'registry.example/org/{data.pull_request.title}'}}",
        ("build.image", "strangers"),
    ),
    "another tool's head": ("{pull_requests: {}, build: {tags: ['{github.head_ref}']}}", ("did you mean {head}",)),
    # Filters
    "a misspelt dialect": ("{filters: [{exat: {type: a}}]}", ("filters[0].exat", "did you mean exact")),
    "a misspelt attribute": ("{filters: [{exact: {sorce: a}}]}", ("filters[0].exact", "did you mean source")),
    "a misspelt attribute inside": ("{filters: [{not: {exact: {tpye: a}}}]}", ("filters[0].not.exact", "type")),
    "an attribute in capitals": ("{filters: [{exact: {Type: a}}]}", ("filters[0].exact", "write type")),
    "an attribute in data": ("{filters: [{exact: {data.ref: a}}]}", ("filters[0].exact", "`when:`")),
    "all of the data": ("{filters: [{exact: {data: a}}]}", ("filters[0].exact", "`when:`")),
    "too long a name": (f"{{filters: [{{exact: {{{'a' * 41}: a}}}}]}}", ("filters[0].exact",)),
    "what no push has": ("{push: {}, filters: [{exact: {branch: main}}]}", ("filters", "branch", "push.branches")),
    "what no default push has": ("{filters: [{prefix: {repository: x}}]}", ("filters", "repository", "source")),
    "what no webhook has": (
        (
            "{filters: [{prefix: {type: com.github.release}}, {exact: {action: published}}],"
            " build: {repository: 'https://a.example/b'}}"
        ),
        ("filters", "action", "`when:`"),
    ),
    "another version": ("{filters: [{exact: {specversion: '0.3'}}]}", ("filters[0].exact.specversion",)),
    "a version's number": ("{filters: [{exact: {specversion: 1.0}}]}", ("filters[0].exact.specversion", "quotes")),
    "no source": ("{filters: [{exact: {source: a b}}]}", ("filters[0].exact.source",)),
    "no time": ("{filters: [{exact: {time: yesterday}}]}", ("filters[0].exact.time",)),
    "a time in another zone": (
        "{filters: [{exact: {time: '2026-01-01T00:00:00+01:00'}}]}",
        ("filters[0].exact.time", "2025-12-31T23:00:00Z"),
    ),
    "several values": ("{filters: [{exact: {type: [a, b]}}]}", ("filters[0].exact.type", "any")),
    "no list of filters": ("{filters: {exact: {type: a}}}", ("filters", "write a list")),
    "an empty filter": ("{filters: [{exact: {type: }}]}", ("filters[0].exact.type", "is empty")),
    "two types": ("{filters: [{exact: {type: a}}, {exact: {type: b}}]}", ("filters", "any")),
    "two beginnings": ("{filters: [{prefix: {source: 'https://a/'}}, {prefix: {source: 'https://b/'}}]}", ("filters",)),
    "one and not it": (
        "{filters: [{exact: {type: com.github.push}}, {not: {prefix: {type: com.github.}}}]}",
        ("filters", "contradict"),
    ),
    "none of any": (
        "{filters: [{exact: {type: a}}, {any: [{exact: {type: b}}, {suffix: {type: c}}]}]}",
        ("filters", "contradict"),
    ),
    "a condition against a filter": (
        "{when: [{exact: {data.a: x}}, {not: {exists: data.a}}]}",
        ("filters", "contradict"),
    ),
    "an event of Kiln's": (
        "{filters: [{exact: {type: dev.kiln.build.succeeded.v1}}], build: {repository: 'https://a.example/b'}}",
        ("filters", "match no trigger"),
    ),
    "a push of another type": (
        "{push: {branches: [main]}, filters: [{exact: {type: org.example.course}}]}",
        ("push", "com.github.push"),
    ),
    "a misspelt type": ("{filters: [{exact: {type: com.github.psh}}]}", ("filters", "com.github.push")),
    "a type in capitals": ("{filters: [{exact: {type: com.github.Push}}]}", ("filters", "com.github.push")),
    "a bare type": ("{filters: [{exact: {type: push}}]}", ("filters", "com.github.push")),
    "a pattern as type": ("{filters: [{exact: {type: 'com.github.*'}}]}", ("filters", "prefix: {type: com.github.}")),
    "a pattern as source": (
        "{filters: [{prefix: {source: 'https://github.com/our-org/*'}}]}",
        ("filters", "prefix: {source: https://github.com/our-org/}"),
    ),
    "a misspelt beginning": ("{filters: [{prefix: {type: com.gihub.}}]}", ("filters", "com.github.")),
    "a condition on what no push has": ("{when: [{exists: branch}]}", ("filters", "branch")),
    "a branch as subject": ("{push: {}, filters: [{exact: {subject: main}}]}", ("filters", "refs/heads/main")),
    "a subject that push leaves out": (
        "{push: {branches: [dev]}, filters: [{exact: {subject: refs/heads/main}}]}",
        ("filters", "which push excludes"),
    ),
    "a source to clone from": (
        "{filters: [{exact: {source: 'https://github.com/a/b.git'}}]}",
        ("filters", "write https://github.com/a/b"),
    ),
    "a source without scheme": (
        "{filters: [{exact: {source: github.com/a/b}}]}",
        ("filters", "https://github.com/a/b"),
    ),
    "a hook in capitals": (
        "{filters: [{exact: {type: dev.knative.sources.gitlabsource.push hook}}]}",
        ("filters", "did you mean dev.knative.sources.gitlabsource.Push Hook"),
    ),
    # Conditions
    "an empty condition": ("{when: [{exists: []}]}", ("when[0].exists",)),
    "a whole data": ("{when: [{exists: data}]}", ("when[0].exists", "data.action")),
    "a condition's dialect": ("{when: [{exist: data.a}]}", ("when[0].exist", "did you mean exists")),
    # Templates
    "nothing to build": ("{filters: [{exact: {type: org.example.course}}]}", ("build.repository", "required")),
    "Actions' form": ("{build: {tags: ['${{ github.ref_name }}']}}", ("build.tags[0]", "did you mean {ref_name}")),
    "another's name": ("{build: {tags: ['{branch}']}}", ("build.tags[0]", "did you mean {ref_name}")),
    "a commit's other name": ("{build: {image: 'registry.example/org/x-{sha}'}}", ("build.image", "{commit}")),
    "a misspelt name": ("{build: {tags: ['{ref-name}']}}", ("build.tags[0]", "did you mean {ref_name}")),
    "no such name": ("{build: {subdir: '{course}'}}", ("build.subdir", "the values are {data.…}")),
    "an extension of no push": ("{build: {subdir: '{extensions.course}'}}", ("build.subdir", "course")),
    "all data": ("{build: {subdir: '{data}'}}", ("build.subdir",)),
    "a slug too early": ("{build: {repository: 'https://github.com/a/{slug}'}}", ("build.repository", "{slug}")),
    "a ref of no push": (
        "{filters: [{exact: {type: org.example.x}}], build: {repository: 'https://a.example/b', ref: '{ref}'}}",
        ("build.ref", "{ref}"),
    ),
    "the shell's form": ("{build: {tags: ['${ref_name}']}}", ("build.tags[0]", "did you mean {ref_name}")),
    "two braces": ("{build: {tags: ['{{ref_name}}']}}", ("build.tags[0]", "did you mean {ref_name}")),
    "a blank in braces": ("{build: {subdir: '{ data.a }'}}", ("build.subdir", "did you mean {data.a}")),
    "a payload": ("{build: {subdir: '{payload.course.dir}'}}", ("build.subdir", "did you mean {data.course.dir}")),
    "an event's member": ("{build: {subdir: '{event.data.dir}'}}", ("build.subdir", "did you mean {data.dir}")),
    # Values for which every build would be refused
    "a repository by ssh": (
        "{build: {repository: 'git@github.com:a/b'}}",
        ("build.repository", "https://github.com/a/b"),
    ),
    "a repository without scheme": (
        "{build: {repository: github.com/a/b}}",
        ("build.repository", "https://github.com/a/b"),
    ),
    "a repository's page": (
        "{build: {repository: 'https://github.com/a/b/tree/main'}}",
        ("build.repository", "Write 'https://github.com/a/b'"),
    ),
    "a private host": ("{build: {repository: 'https://10.0.0.1/a'}}", ("build.repository", "private network")),
    "plain http": (
        "{build: {repository: 'http://git.example/a'}}",
        ("build.repository", "Write 'https://git.example/a'"),
    ),
    "a private host before a value": ("{build: {repository: 'https://10.0.0.1/{data.a}'}}", ("build.repository",)),
    "ssh before a value": ("{build: {repository: 'ssh://git@a.example/{data.a}'}}", ("build.repository", "SSH")),
    "no branch": ("{build: {ref: 'a..b'}}", ("build.ref",)),
    "no ref with a value": ("{build: {ref: '-{data.a}'}}", ("build.ref",)),
    "a short commit": ("{build: {commit: abc1234}}", ("build.commit", "40")),
    "a commit with more": ("{build: {commit: 'sha-{commit}'}}", ("build.commit", "40")),
    "a number as commit": ("{build: {commit: 1234567}}", ("build.commit", "'1234567'")),
    "a ref that is another commit": (
        f"{{build: {{ref: {'a' * 40}, commit: {'b' * 40}}}}}",
        ("build.commit", "different"),
    ),
    "an absolute subdir": ("{build: {subdir: /binder}}", ("build.subdir", "Write 'binder'")),
    "a subdir outside": ("{build: {subdir: '../{data.a}'}}", ("build.subdir", "'..'")),
    "an image with a tag": (
        "{build: {image: 'registry.example/org/a:latest'}}",
        ("build.image", "Write 'registry.example/org/a'"),
    ),
    "an image in capitals": (
        "{build: {image: 'registry.example/org/A'}}",
        ("build.image", "Write 'registry.example/org/a'"),
    ),
    "an image elsewhere": (
        "{build: {image: 'registry.example/courses/{slug}'}}",
        ("build.image", "registry.example/org/courses/{slug}"),
    ),
    "an image without registry": ("{build: {image: '{slug}'}}", ("build.image", "Write 'registry.example/org/{slug}'")),
    "an image with a value and a tag": ("{build: {image: 'registry.example/org/a:{ref_name}'}}", ("build.image",)),
    "another's image": (
        "{build: {repository: 'https://github.com/a/b', image: 'registry.example/org/a-0123456789'}}",
        ("build.image", "own image"),
    ),
    "an empty tag": ("{build: {tags: ['']}}", ("build.tags", "empty")),
    "a commit's tag": (f"{{build: {{tags: [{'a' * 40}]}}}}", ("build.tags", "commit")),
    "too many tags": (f"{{build: {{tags: [{', '.join(f'a{n}' for n in range(21))}]}}}}", ("build.tags", "20")),
    "an argument's name": ("{build: {build_args: {A-B: x}}}", ("build.build_args", "letters")),
    "an argument of the tool chain": ("{build: {build_args: {HTTP_PROXY: x}}}", ("build.build_args", "HTTP_PROXY")),
    "a number as argument": ("{build: {build_args: {YEAR: 2026}}}", ("build.build_args.YEAR", "'2026'")),
    "too long an argument": (f"{{build: {{build_args: {{A: {'x' * 4097}}}}}}}", ("build.build_args", "4096")),
}

FILES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "a misspelt section": ("trigger: []", ("trigger", "did you mean triggers")),
    "the section `on`": ("on: {push: {}}", ("write it in quotes",)),
    "two triggers of a name": ("triggers: [{name: a}, {name: a}]", ("Two triggers have the name 'a'",)),
    "all problems": (
        "triggers: [{name: a, push: {branches: ['']}}, {name: b, build: {tags: ['{x}']}}]",
        ("Trigger 'a', push.branches[0]", "Trigger 'b', build.tags[0]"),
    ),
    "a sink's fragment": ("sinks: [{name: a, url: 'https://x.example/#y'}]", ("sinks[0]", "fragment")),
    "a sink's password": ("sinks: [{name: a, url: 'https://u:p@x.example/'}]", ("sinks[0]", "headers/<sink>")),
    "a sink's blank": ("sinks: [{name: a, url: 'https://x.example/a b'}]", ("sinks[0]", "percent-encode it")),
    "a sink's placeholder": ("sinks: [{name: a, url: 'https://x.example/{slug}'}]", ("sinks[0]", "percent-encode it")),
    "a sink's mode": (
        "sinks: [{name: a, url: 'https://x.example/', mode: batch}]",
        ("sinks[0].mode", "binary, struct"),
    ),
    "a sink's word": (
        "sinks: [{name: a, url: 'https://x/', types: [failed]}]",
        ("sinks[0].types", "dev.kiln.build.failed.v1"),
    ),
    "a sink's port": ("sinks: [{name: a, url: 'https://x.example:99999/'}]", ("sinks[0]",)),
    "a sink without types": ("sinks: [{name: a, url: 'https://x.example/', types: []}]", ("sinks[0]", "types")),
    "a sink's misspelt type": (
        "sinks: [{name: a, url: 'https://x.example/', types: [dev.kiln.build.succeded.v1]}]",
        ("sinks[0].types", "dev.kiln.build.succeeded.v1"),
    ),
    "a sink's type without version": (
        "sinks: [{name: a, url: 'https://x.example/', types: [dev.kiln.build.failed]}]",
        ("sinks[0].types", "dev.kiln.build.failed.v1"),
    ),
    "a sink's extension": (
        "sinks: [{name: a, url: 'https://x.example/', extensions: {my-ext: x}}]",
        ("sinks[0]", "my-ext", "lower-case"),
    ),
    "a sink's long extension": (
        f"sinks: [{{name: a, url: 'https://x.example/', extensions: {{{'a' * 41}: x}}}}]",
        ("sinks[0]", "extensions"),
    ),
    "a sink's line break": (
        'sinks: [{name: a, url: "https://x.example/", extensions: {a: "x\\ny"}}]',
        ("sinks[0]", "extensions"),
    ),
    "a sink's large number": (
        "sinks: [{name: a, url: 'https://x.example/', extensions: {a: 4294967296}}]",
        ("sinks[0]", "32 bits"),
    ),
    "a sink's long value": (
        f"sinks: [{{name: a, url: 'https://x.example/', extensions: {{a: {'x' * 2049}}}}}]",
        ("sinks[0]", "2048"),
    ),
    "a sink's token without a file": (
        "sinks: [{name: a, url: 'https://x.example/', token_file: ''}]",
        ("sinks[0]", "token_file"),
    ),
    "a sink's fraction": ("sinks: [{name: a, url: 'https://x.example/', extensions: {a: 1.5}}]", ("sinks[0]",)),
    "a sink's CA as a file": ("sinks: [{name: a, url: 'https://x.example/', ca: /etc/ca.pem}]", ("sinks[0].ca", "PEM")),
    "a sink's broken CA": (
        f"sinks: [{{name: a, url: 'https://x.example/', ca: \"{PEM}\"}}]",
        ("sinks[0].ca", "PEM"),
    ),
    "a sink's key": ("sinks: [{name: a, uri: 'https://x.example/'}]", ("sinks[0]", "did you mean url")),
    "a host twice": ("hosts: {a.example: {kind: github}, A.example: {kind: gitlab}}", ("hosts.a.example", "2 times")),
    "a host's port": ("hosts: {'a.example:99999': {kind: github}}", ("hosts.a.example:99999",)),
    "GitHub as another": ("hosts: {github.com: {kind: gitlab}}", ("hosts.github.com.kind", "github")),
    "a host's kind": ("hosts: {a.example: {kind: git}}", ("hosts.a.example.kind", "there are github, gitlab")),
    "a host without a kind": ("hosts: {a.example: gitlab}", ("hosts.a.example", "write a mapping")),
    "a registry's port": ("insecure_registries: ['a.example:99999']", ("insecure_registries[0]",)),
    "a registry in capitals": ("insecure_registries: ['A.example:5000']", ("insecure_registries[0]", "a.example:5000")),
    "a private prefix's scheme": (
        "private_image_prefix: 'https://a.example/b/'",
        ("private_image_prefix", "lower case"),
    ),
    "a trigger's name": ("triggers: [{name: my courses}]", ("triggers[0].name", "letters")),
    "an image pattern's tag": ("allowed_images: ['a.example/b:latest']", ("allowed_images[0]", "Write a.example/b.")),
    "an image pattern's registry": ("allowed_images: [a.example]", ("allowed_images[0]", "a.example/**")),
    "an image pattern's end": ("allowed_images: [a.example/b/]", ("allowed_images[0]", "a.example/b/**")),
    "an image pattern's scheme": ("allowed_images: ['https://a.example/b/*']", ("allowed_images[0]", "a.example/b/*")),
    "an image pattern's class": ("allowed_images: ['a.example/[ab]']", ("allowed_images[0]",)),
    "an empty image pattern": ("allowed_images: ['']", ("allowed_images[0]",)),
    "a listed repository that is refused": ("repositories: [{url: 'https://10.0.0.1/a'}]", ("repositories[0].url",)),
    "a poll too short": ("repositories: [{url: 'https://a.example/b', poll: 5s}]", ("repositories[0].poll", "1m")),
    "a poll too long": ("repositories: [{url: 'https://a.example/b', poll: 4000d}]", ("repositories[0].poll", "3650d")),
    "private for a pattern": (
        "private: [{match: 'https://github.com/a/*', use_by: ['user:*']}]\nprivate_image_prefix: a.example/private/",
        ("private[0]", "complete names"),
    ),
    "private for nobody": (
        "private: [{match: 'https://github.com/a/*', use_by: []}]\nprivate_image_prefix: registry.example/private/",
        ("private[0].use_by", "webhooks"),
    ),
}

SECRETS: Mapping[str, tuple[str, bytes, str]] = {
    "CRLF": ("webhooks/github/a", b"canary\r\n", "carriage return"),
    "a stray CR": ("api-tokens/a", b"canary\r", "carriage return"),
    "UTF-8 with a mark": ("webhooks/github/a", b"\xef\xbb\xbfcanary\n", "byte order mark"),
    "UTF-16": ("webhooks/github/a", "canary\n".encode("utf-16"), "byte order mark"),
    "a blank behind": ("webhooks/github/a", b"canary \n", "blank"),
    "a blank before": ("api-tokens/a", b" canary\n", "blank"),
    "a blank of Unicode's": ("webhooks/github/a", "canary\u00a0\n".encode(), "blank"),
    "a blank without width": ("webhooks/github/a", "\u200bcanary\n".encode(), "blank"),
    "a tab": ("api-tokens/a", b"canary\t", "blank"),
    "an empty line": ("webhooks/github/a", b"canary\n\n", "empty line"),
    "only blanks": ("webhooks/github/a", b"  \n", "empty"),
    "two secrets": ("webhooks/github/a", b"canary\ncanary2\n", "several lines"),
    "a token beyond ASCII": ("api-tokens/a", "canary-é\n".encode(), "Authorization"),
    "headers with a mark": ("headers/hub", b"\xef\xbb\xbfAuthorization: canary\n", "byte order mark"),
    "a blank in a header's name": ("headers/hub", b"X Y: canary\n", "line 1"),
    "a blank before the colon": ("headers/hub", b"X-Y : canary\n", "line 1"),
    "a header that goes on": ("headers/hub", b"X-Y: canary\n more\n", "line 2"),
    "a header beyond ASCII": ("headers/hub", "X-Y: canary-é\n".encode(), "line 1"),
    "a control character": ("headers/hub", b"X-Y: a\x00canary\n", "line 1"),
    "a header of our own": ("headers/hub", b"Content-Length: 5\n", "only Kiln itself sets"),
    "an attribute": ("headers/hub", b"X-Y: canary\nce-id: 1\n", "line 2"),
    "a header twice": ("headers/hub", b"X-Y: canary\nx-y: canary2\n", "repeated"),
    "a header without value": ("headers/hub", b"Authorization:\n", "no value"),
    "a credential without password": ("git-credentials/a", b"https://canary@git.example\n", "line 1"),
    "a netrc": ("git-credentials", b"machine git.example login a password canary\n", "line 1"),
    "a credential with a mark": ("git-credentials/a", b"\xef\xbb\xbfhttps://a:canary@git.example\n", "byte order mark"),
    "a credential in another coding": ("git-credentials/a", b"https://a:canary\xff@git.example\n", "UTF-8"),
}


def check(tmp_path: Path, text: str = "", **settings: str) -> tuple[int, str]:
    """Exit status and output of `kiln check` with this file."""
    (tmp_path / "kiln.yaml").write_text(text)
    environment = {
        **ENVIRONMENT,
        "KILN_CONFIG": str(tmp_path / "kiln.yaml"),
        "DOCKER_CONFIG": str(tmp_path),
        **settings,
    }
    report = checking.check(environment)
    return int(not report.valid), "\n".join(report.lines())


def refused(found: tuple[int, str], words: tuple[str, ...]) -> None:
    status, said = found
    assert status == 1, said
    assert said.startswith("error: ")
    missing = [word for word in words if word not in said]
    assert not missing, (said, missing)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_mistake_in_a_trigger(tmp_path: Path, name: str) -> None:
    rule, words = TRIGGERS[name]
    found = check(tmp_path, f"triggers:\n- {{name: good}}\n- {{name: courses, {rule[1:]}\n")
    refused(found, words)
    assert "'courses'" in found[1] or "triggers[1]" in found[1] or "Line 3" in found[1]
    assert len(found[1].splitlines()) == 1, "one mistake, one sentence"


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_another_section(tmp_path: Path, name: str) -> None:
    text, words = FILES[name]
    refused(check(tmp_path, text), words)


@pytest.mark.parametrize("name", SECRETS)
def test_a_mistake_in_a_secret(tmp_path: Path, name: str) -> None:
    place, content, words = SECRETS[name]
    path = tmp_path / "secrets" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    sinks = "sinks: [{name: hub, url: 'https://hub.example/'}]"
    status, said = check(tmp_path, sinks, KILN_SECRETS_DIR=str(tmp_path / "secrets"))
    assert status == 1, said
    assert f"{path}: " in said
    assert words in said
    assert "canary" not in said


def test_a_folder_of_secrets_that_cannot_be_read(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "webhooks").symlink_to("webhooks")
    status, said = check(tmp_path, KILN_SECRETS_DIR=str(secrets))
    assert status == 1
    assert f"{secrets}/webhooks: cannot be read" in said


def test_a_token_with_two_names(tmp_path: Path) -> None:
    tokens = tmp_path / "secrets" / "api-tokens"
    tokens.mkdir(parents=True)
    for name in ("ada", "ci"):
        (tokens / name).write_text("canary\n")
    status, said = check(tmp_path, KILN_SECRETS_DIR=str(tmp_path / "secrets"))
    assert status == 1
    assert "api-tokens/ci: is the token of ada as well" in said


def test_a_docker_configuration_that_docker_would_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    refused(check(tmp_path), ("KILN_REGISTRY_CONFIG", "config.json"))


def test_the_controllers_pod_template(tmp_path: Path) -> None:
    """The controller's environment in a cluster passes without the Hub's: it authenticates no users."""
    template = tmp_path / "pod.yaml"
    cluster = {
        "KILN_ENGINE": "kubernetes",
        "KILN_INSTANCE": "space/kiln",
        "KILN_ANCHOR": "kiln",
        "KILN_AUTH": "hub",
        "KILN_BUILDER_IMAGE": "registry.example/kiln",
        "KILN_POD_TEMPLATE": str(template),
    }
    template.write_text("spec: {containers: [{name: builder}]}\n")
    assert check(tmp_path, **cluster)[0] == 0
    template.write_text("spec: {containers: [{name: other}]}\n")
    refused(check(tmp_path, **cluster), ("KILN_POD_TEMPLATE", "builder"))
    del cluster["KILN_POD_TEMPLATE"]
    refused(check(tmp_path, **cluster), ("KILN_AUTH: hub needs JUPYTERHUB_API_URL",))


@pytest.mark.parametrize(
    "rule",
    [
        "{push: {branches: ['**', '!wip/**', wip/show], tags: ['v*'], paths: ['binder/**', '*.yml', '**.py']}}",
        "{push: {branches: ['release/**', 'feature-*', main]}}",
        "{push: {branches: ['**', '!v*', 'v1']}}",
        "{filters: [{prefix: {source: 'https://github.com/our-org/'}}, {not: {suffix: {source: /secret}}}]}",
        "{filters: [{any: [{exact: {type: com.github.push}}, {exact: {type: dev.knative.source.github.push}}]}]}",
        "{filters: [{exact: {type: com.github.push}}, {exact: {knativearrivaltime: x, key: y}}]}",
        (
            "{filters: [{exact: {type: org.example.course}}, {exact: {region: eu}}],"
            " build: {repository: '{data.url}', ref: '{data.ref}', subdir: '{extensions.region}'}}"
        ),
        (
            "{filters: [{exact: {type: com.github.release.published}}],"
            " build: {repository: '{data.repository.clone_url}', ref: 'refs/tags/{data.release.tag_name}'}}"
        ),
        (
            "{filters: [{exact: {type: org.example.course}}], when: [{exists: [data.course.url]}, {not: {exact:"
            " {data.action: deleted}}}], build: {repository: '{data.course.url}'}}"
        ),
        (
            "{filters: [{exact: {type: org.jupyterhub.server.start}}], build: {repository: 'https://github.com/our-org/stats',"
            " ref: main, tags: [current]}}"
        ),
        "{build: {repository: '{data.scheme}://{data.host}/{data.path}'}}",
        "{build: {repository: 'https://git.example/{data.owner}/{data.name}.git', commit: '{data.sha}'}}",
        "{build: {image: 'registry.example/org/courses/{slug}', tags: ['{ref_name}', latest, '{commit}']}}",
        "{build: {image: 'registry.example/org/{data.a}/b', subdir: 'a/{ref_name}', build_args: {A: '{{x}}', B: ''}}}",
        "{build: {image: '{data.image}'}}",
        f"{{build: {{ref: {'a' * 40}}}}}",
        "{build: {ref: 'refs/{data.kind}/{data.name}'}}",
        "{build: {ref: HEAD, repository: 'https://github.com/a/b'}}",
    ],
)
def test_what_is_in_order(tmp_path: Path, rule: str) -> None:
    status, said = check(tmp_path, f"triggers:\n- {{name: courses, {rule[1:]}\n")
    assert status == 0, said
    assert said.endswith("Configuration is valid")


@pytest.mark.parametrize("kind", sorted(PUSHES))
def test_every_push_can_be_filtered_for(tmp_path: Path, kind: str) -> None:
    status, said = check(tmp_path, f"triggers: [{{name: a, push: {{}}, filters: [{{exact: {{type: {kind}}}}}]}}]")
    assert status == 0, said


def test_patterns_that_a_setting_allows(tmp_path: Path) -> None:
    allowed = {"KILN_ALLOWED_REPOSITORIES": "https://github.com/our-org/*,http://10.0.0.1/**"}
    for repository, status in {
        "https://github.com/Our-Org/{data.a}": 0,
        "https://github.com/{data.owner}/x": 0,
        "http://10.0.0.1/{data.a}": 0,
        "https://github.com/other/{data.a}": 1,
        "https://github.com/other/a": 1,
        "https://gitlab.com/{data.a}": 1,
    }.items():
        text = f"triggers: [{{name: a, build: {{repository: '{repository}'}}}}]"
        assert check(tmp_path, text, **allowed)[0] == status, repository


@pytest.mark.parametrize("document", ["settings.md", "jupyterhub.md"])
def test_what_the_documents_show(tmp_path: Path, document: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / document).read_text()
    shown = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("triggers:")]
    assert shown
    for block in shown:
        status, said = check(tmp_path, block, **PUBLIC)
        assert status == 0, said


def test_a_host_is_told_with_a_link_and_a_credential_of_its_own(tmp_path: Path) -> None:
    text = "hosts: {git.example: {kind: gitlab, statuses: true}}"
    refused(check(tmp_path, text), ("hosts.git.example", "KILN_PUBLIC_URL"))
    status, said = check(tmp_path, text, **PUBLIC)
    assert (status, "warning: no credential in statuses/git.example" in said) == (0, True)
    folder = tmp_path / "secrets" / "statuses"
    folder.mkdir(parents=True)
    settings = {**PUBLIC, "KILN_SECRETS_DIR": str(folder.parent)}
    (folder / "git.example").write_text("https://kiln:canary@other.example/lab\n")
    refused(check(tmp_path, text, **settings), ("statuses/git.example", "other.example"))
    (folder / "git.example").write_text("https://kiln:canary@git.example/lab\n")
    status, said = check(tmp_path, text, **settings)
    assert status == 0, said
    assert "statuses: git.example, statuses" in said
    assert "warning: no credential in statuses" not in said
    assert "canary" not in said
    refused(check(tmp_path, "", **settings), (f"{folder}/git.example: nothing reads this",))


def test_the_credentials_for_statuses_are_tried_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it would be sent."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "secrets" / "statuses"
    folder.mkdir(parents=True)
    with StatusHost("gitea") as good, StatusHost("gitlab") as wrong, StatusHost("bitbucket-server") as server:
        hosts = ", ".join(f"'{one.name}': {{kind: {one.kind}, statuses: true}}" for one in (good, wrong, server))
        (folder / good.name).write_text(TOKEN)
        (folder / wrong.name).write_text(f"http://kiln:another-canary@{wrong.name}/lab\n")
        (folder / server.name).write_text(TOKEN)
        allowed = ",".join(f"http://{one.name}/**" for one in (good, wrong, server))
        settings = {"KILN_SECRETS_DIR": str(folder.parent), "KILN_ALLOWED_REPOSITORIES": allowed}
        (tmp_path / "kiln.yaml").write_text(f"hosts: {{{hosts}}}")
        kiln = wiring.load({**ENVIRONMENT, **PUBLIC, **settings, "KILN_CONFIG": str(tmp_path / "kiln.yaml")})
        probes = [probe for probe in outside.probes(kiln) if "statuses at" in probe.name]
        told = [
            " ".join([f"{one.state}: {one.probe}:", one.found, *filter(None, [one.cure])]) for one in examine(probes)
        ]
    refusal = f"it does not accept the credential in statuses/{wrong.name}"
    cure = f"Replace the credential in statuses/{wrong.name}: the Git host does not accept it."
    assert told == [
        f"ok: statuses at http://{good.name}/: answered 200; nothing was set",
        f"failed: statuses at http://{wrong.name}/lab: answered 401 (Unauthorized): {refusal} {cure}",
        f"ok: statuses at http://{server.name}/scm: answered 404 (Not Found); nothing was set",
    ]
    assert "canary" not in "".join(told)
    assert not good.statuses


def test_images_that_the_file_allows(tmp_path: Path) -> None:
    for image, status in {"a.example/courses/{slug}": 0, "a.example/{slug}": 1, "{data.a}/courses/x": 0}.items():
        text = f"allowed_images: ['a.example/courses/*']\ntriggers: [{{name: a, build: {{image: '{image}'}}}}]"
        assert check(tmp_path, text)[0] == status, image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "Not a private key in PEM form"),
        ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "is encrypted"),
    ],
)
def test_a_key_that_cannot_sign_is_told(tmp_path: Path, content: str | None, words: str) -> None:
    key = tmp_path / "cosign.key"
    if content is not None:
        key.write_text(content)
    with pytest.raises(KilnError) as caught:
        wiring.load({**ENVIRONMENT, "KILN_SIGNING_KEY": str(key)})
    [problem] = caught.value.problems
    assert problem.startswith(f"KILN_SIGNING_KEY: {key}")
    assert words in problem


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "https://kiln.dev/builder/local"),
        ({"KILN_INSTANCE": "courses/kiln"}, "https://kiln.dev/builder/courses/kiln"),
        (PUBLIC, PUBLIC["KILN_PUBLIC_URL"]),
        ({**PUBLIC, "KILN_EVENT_SOURCE": "urn:example:kiln"}, "urn:example:kiln"),
        ({"KILN_EVENT_SOURCE": "/elsewhere"}, "https://kiln.dev/builder/local"),
    ],
)
def test_provenance_names_this_kiln_by_a_uri(environment: Mapping[str, str], expected: str) -> None:
    assert wiring.surroundings(wiring.load({**ENVIRONMENT, **environment})).builder.id == expected


def test_provenance_can_be_switched_off() -> None:
    assert wiring.surroundings(wiring.load(ENVIRONMENT)).provenance
    assert not wiring.surroundings(wiring.load({**ENVIRONMENT, "KILN_PROVENANCE": "no"})).provenance
