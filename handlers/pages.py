"""Pages for people: their routes. `lists` has those that list builds, `buildpage` that of one build.

Each is whole without JavaScript (a live page then reloads itself); with it the log is followed as it is written, and
the facts around it are fetched anew from the same page. Whatever a repository or its log says is text here, never
markup: everything is escaped by the templates, and the Content-Security-Policy lets nothing inline run.
"""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response

from builds.repository import short_name
from eventing.terminal import plain
from handlers import buildpage, forms, lists, nodes, problems, rehearsals, signin, times
from handlers.problems import Problem

routes = Blueprint("pages", __name__)
routes.add_url_rule("/", view_func=lists.index, provide_automatic_options=False)
routes.add_url_rule("/repository", view_func=lists.repository)
routes.add_url_rule("/builds/<name>", view_func=buildpage.build)
routes.add_url_rule("/builds/<name>/log", view_func=buildpage.log)
routes.add_url_rule("/builds/<name>/cancel", view_func=buildpage.cancel_build, methods=["POST"])
routes.add_url_rule("/builds/<name>/rebuild", view_func=buildpage.rebuild_build, methods=["POST"])
routes.add_url_rule("/builds/<name>/resend", view_func=buildpage.resend_event, methods=["POST"])
routes.add_url_rule("/new", view_func=forms.new_build)
routes.add_url_rule("/new", view_func=forms.ask_for_build, methods=["POST"])
routes.add_url_rule("/nodes", view_func=nodes.nodes)
routes.add_url_rule("/triggers", view_func=rehearsals.triggers)
routes.add_url_rule("/triggers", view_func=rehearsals.rehearse, methods=["POST"])
for read in (*times.FILTERS, plain):
    routes.add_app_template_filter(read)

routes.before_request(signin.take_token)


@routes.errorhandler(Problem)
def ask_who_it_is(problem: Problem) -> Response:
    """A browser that brings nothing is asked where the page would have been; everything else gets the problem."""
    if problem.status != HTTPStatus.UNAUTHORIZED or not problems.for_a_person():
        return problems.answer(problem)
    return signin.ask(problem)


# How the templates say values


@routes.app_template_filter()
def branch(ref: str | None) -> str:
    """A ref as people say it."""
    return short_name(ref or "")


@routes.app_template_test()
def web_address(url: str) -> bool:
    return url.startswith(("https://", "http://"))
