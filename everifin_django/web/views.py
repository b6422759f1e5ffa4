"""
The views: begin a login or connection, take it back, log out, disconnect.

Each reads the request, calls below and redirects. None runs in the transaction of an
ATOMIC_REQUESTS site: a grant that has been exchanged must not be lost by a rollback.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import auth, messages
from django.contrib.auth.decorators import login_not_required, login_required
from django.contrib.auth.views import redirect_to_login
from django.core.handlers.asgi import ASGIRequest
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    QueryDict,
)
from django.shortcuts import render, resolve_url
from django.urls import get_script_prefix, reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import pgettext
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import TemplateView, View

from everifin_django.backends import (
    EverifinBackend,
    Grant,
    LoginAttempt,
    is_ours,
    login_backend,
)
from everifin_django.conf import conf
from everifin_django.connections import grants, logout, revocation
from everifin_django.exceptions import (
    APIError,
    IdentityMismatchError,
    IdentityTakenError,
    KeysUnavailableError,
    LoginError,
    LoginRefusedError,
    RefusedError,
    UnavailableError,
)
from everifin_django.http.strict_json import strict_json
from everifin_django.models import outside_transactions
from everifin_django.oauth import endpoints
from everifin_django.oauth.oidc import authorization_request
from everifin_django.secret import Secret
from everifin_django.web import access, backchannel_logout, browser_session, login_flow, notices
from everifin_django.web.login_flow import Flow, FlowKind, ReturnRedirect
from everifin_django.web.notices import Notice
from everifin_django.web.outcomes import FlowState, LoggedIn, Step, outcome_of
from everifin_django.web.responses import (
    NOTICE_SESSION_KEY,
    Action,
    error_page,
    leave_for,
    log_in_first,
    prefers_json,
    start_again,
    unavailable,
)

logger = logging.getLogger(__name__)
security_logger = logging.getLogger("everifin_django.security")

LONGEST_PARAMETERS = {
    "state": 128,
    "code": 2048,
    "iss": 255,
    "session_state": 255,
    "error": 64,
    "error_description": 2048,
    "error_uri": 2048,
}
"""
What an authorization answer may carry, and how much of it. Source: RFC 6749, 4.1.2; RFC 9207;
Keycloak.
"""

NO_CODE = Secret("")
NOTICE_OF_ERROR = {
    "access_denied": notices.CANCELLED,
    "invalid_scope": notices.FAILED,
    # OpenID Connect Core Error Code unmet_authentication_requirements 1.0
    "unmet_authentication_requirements": notices.SIGN_IN_BETTER,
}
BEGIN_AGAIN = frozenset(
    {
        "login_required",
        "interaction_required",
        "consent_required",
        "account_selection_required",
    }
)
"""Errors after which the person begins again. Source: OpenID Connect Core 1.0, 3.1.2.6."""
KEYCLOAK_EXPIRED = ("temporarily_unavailable", "authentication_expired")
"""
A Keycloak says so when its own login page has expired, or the person has signed in in another tab.
It is no outage. Source: Keycloak's OIDCLoginProtocol.translateError, which has no other of its own.
"""
NOTICE_OF_OUTAGE = ("temporarily_unavailable", "server_error")
STATUSES_BY_REASON = {
    "identity_taken": 409,
    "identity_mismatch": 409,
    "no_user": 403,
    "user_inactive": 403,
    "refused": 403,
    "login_not_allowed": 403,
    "id_token_auth_time": 403,
    "id_token_acr": 403,
}
"""The status of the page that says so; 400 for all others."""

DONE = {
    FlowKind.LOGIN: _lazy("You are logged in with Everifin."),
    FlowKind.CONNECT: _lazy("Everifin is connected."),
    FlowKind.LOGOUT: _lazy("You are logged out."),
    "disconnect": _lazy("Everifin is disconnected."),
}

auth_view_decorators = [
    # Each view says itself who may use it, and Everifin's own call has no session.
    method_decorator(login_not_required, name="dispatch"),
    method_decorator(outside_transactions, name="dispatch"),
    method_decorator(never_cache, name="dispatch"),
    method_decorator(csrf_protect, name="dispatch"),
    method_decorator(xframe_options_deny, name="dispatch"),
]


def auth_view(view: type[View]) -> Any:
    for decorate in auth_view_decorators:
        view = decorate(view)
    return view


class StartView(View):
    """
    A page with one button on GET; on POST, a redirect to Everifin. For a front end that prefers
    JSON, the POST answers where to send the browser: ``{"authorize_url": ...}``.
    """

    http_method_names = ["get", "head", "post", "options"]
    kind: FlowKind

    def get(self, request: HttpRequest) -> HttpResponse:
        context = {
            "kind": self.kind,
            "next": login_flow.safe_next(request, request.GET.get("next", "")),
            "notice": _notice_to_show(request),
        }
        return render(request, "everifin_django/start.html", context)

    def post(self, request: HttpRequest) -> HttpResponse:
        redirect_uri = login_flow.redirect_uri(request)
        params = login_flow.params_of(self.kind, request)
        begun = authorization_request(redirect_uri, params)
        flow = Flow(
            kind=self.kind,
            user_pk=_user_pk(request),
            issuer=conf.issuer,
            redirect_uri=redirect_uri,
            next_url=login_flow.safe_next(request, _next_in(request)),
            host=request.get_host(),
            nonce=begun.nonce,
            code_verifier=begun.code_verifier,
            asked=login_flow.asked_by(params),
        )
        if prefers_json(request):
            response: HttpResponse = JsonResponse({"authorize_url": begun.url})
        else:
            response = leave_for(request, begun.url)
        login_flow.begin(request, response, begun.state, flow)
        return response


@auth_view
class LoginView(StartView):
    """Log a visitor in with Everifin."""

    kind = FlowKind.LOGIN

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if login_backend() is None:
            raise Http404
        if request.user.is_authenticated:
            asked_for = _next_in(request) or request.GET.get("next")
            return _logged_in_already(request, asked_for)
        return super().dispatch(request, *args, **kwargs)


@auth_view
class ConnectView(StartView):
    """Connect Everifin to the user who is logged in."""

    kind = FlowKind.CONNECT

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if not request.user.is_authenticated:
            if prefers_json(request):
                return log_in_first(request)
            return redirect_to_login(request.get_full_path())
        if (refusal := access.refusal(request, "connect")) is not None:
            return refusal
        return super().dispatch(request, *args, **kwargs)


@auth_view
class CallbackView(View):
    """
    Take a visitor back from Everifin. The answer is a redirect, or a page that says what went
    wrong: ``web.outcomes`` has the table.
    """

    http_method_names = ["get"]
    flow: Flow | None = None

    def get(self, request: HttpRequest) -> HttpResponse:
        try:
            response = self._handle_response(request)
        except LoginError as error:
            response = self._not_believed(request, error)
        # Not no-referrer: a browser would send "Origin: null" with forms on the page.
        response["Referrer-Policy"] = "same-origin"
        return response

    def _handle_response(self, request: HttpRequest) -> HttpResponse:
        parameters = _parameters(request)
        flow, state = self._find_flow(request, parameters["state"])
        outcome = outcome_of(
            None if flow is None else flow.kind,
            state,
            _who(request, flow),
            is_error="error" in parameters,
        )
        if flow is None or outcome.step == Step.REFUSE:
            return self._refused(request, outcome.reason, outcome.notice)
        if outcome.step == Step.LEAD_ON:
            return self._lead_on(request, flow)
        _check_issuer(parameters, flow)
        if outcome.step == Step.TELL:
            return self._tell(request, flow, _notice_of(parameters))
        if parameters.get("code", NO_CODE) == NO_CODE:
            raise LoginError("code_missing")
        return self._exchange_code(request, flow, parameters["code"])

    def _find_flow(self, request: HttpRequest, state: Secret) -> tuple[Flow | None, FlowState]:
        """The flow, whose state is spent from now on: no other request will take its answer."""
        flow = login_flow.find(state)
        if flow is None or flow.kind == FlowKind.LOGOUT:
            return None, FlowState.UNKNOWN
        if not login_flow.is_of_this_browser(request, flow):
            if flow.host == request.get_host():
                return None, FlowState.UNKNOWN
            self.flow = flow
            return flow, FlowState.OTHER_HOST
        self.flow = flow
        if not login_flow.consume_once(state.reveal()):
            return flow, FlowState.SPENT
        login_flow.erase_secrets(flow)
        return flow, FlowState.TOO_OLD if flow.is_too_old else FlowState.KNOWN

    def _lead_on(self, request: HttpRequest, flow: Flow) -> HttpResponse:
        """Another answer was quicker: nothing is left to do but to show the page."""
        login_flow.leave_session_alone(request)
        return ReturnRedirect(login_flow.next_or_default(request, flow.next_url))

    def _tell(self, request: HttpRequest, flow: Flow, notice: str) -> HttpResponse:
        """
        The visitor cancelled, or Everifin could not: back to the page with the button, with a
        sentence.
        """
        security_logger.info("A %s with Everifin ended there: %s.", flow.kind, notice)
        login_flow.leave_session_alone(request)
        return HttpResponseRedirect(_start_page(flow, notice))

    def _not_believed(self, request: HttpRequest, error: LoginError) -> HttpResponse:
        flow = self.flow
        if flow is not None and flow.kind == FlowKind.LOGIN and error.reason == "user_changed":
            return self._lead_on(request, flow)
        return self._refused(request, error.reason, _told(error))

    def _refused(self, request: HttpRequest, reason: str, notice: str | Notice) -> HttpResponse:
        security_logger.warning("A login or connection with Everifin was stopped: %s.", reason)
        if reason == "other_host":
            logger.error(
                "A user began at another host of this site than the one that Everifin sends back "
                "to. Lead visitors to the host of EVERIFIN_REDIRECT_URI first."
            )
        login_flow.leave_session_alone(request)
        status = STATUSES_BY_REASON.get(reason, 400)
        return error_page(request, notice, status=status, action=self._way_on(request, notice))

    def _way_on(self, request: HttpRequest, notice: str | Notice) -> Action | None:
        flow = self.flow
        if notice == notices.INACTIVE:
            return None
        if notice in (notices.NO_USER, notices.LOGIN_NOT_ALLOWED):
            return _to_login_page(request, flow.next_url if flow is not None else "")
        if flow is None:
            return start_again(request)
        if notice == notices.LOGGED_OUT:
            return _to_login_page(request, _start_page(flow))
        return Action(_("Start again"), _start_page(flow))

    def _exchange_code(self, request: HttpRequest, flow: Flow, code: Secret) -> HttpResponse:
        backend = EverifinBackend()
        if flow.kind == FlowKind.LOGIN:
            backend = _login_backend()
        else:
            login_flow.reread_session(request)
        try:
            grant = backend.exchange_code(
                code,
                redirect_uri=flow.redirect_uri,
                code_verifier=flow.verifier,
                nonce=flow.nonce,
                started_at=flow.started_at,
                asked=flow.asked,
            )
        except (UnavailableError, RefusedError) as error:
            return self._not_exchanged(request, flow, error)
        try:
            user = self._store(request, flow, grant)
        except IdentityTakenError:
            return self._refused(request, "identity_taken", notices.TAKEN)
        except IdentityMismatchError:
            return self._refused(request, "identity_mismatch", notices.OTHER_IDENTITY)
        if flow.kind == FlowKind.LOGIN:
            auth.login(request, user)
            if not browser_session.begin(request, grant, flow.state_digest):
                auth.logout(request)
                raise LoginError("logged_out_meanwhile")
        _say(request, flow.kind)
        return ReturnRedirect(login_flow.next_or_default(request, flow.next_url))

    def _store(self, request: HttpRequest, flow: Flow, grant: Grant) -> Any:
        """Return the user who has the grant from now on."""
        try:
            login_flow.reread_session(request)
            if flow.kind == FlowKind.LOGIN:
                return _authenticate(request, grant)
            grants.save_grant(
                request.user,
                grant.tokens,
                grant.identity,
                login_session_id=browser_session.record_id_of(request.session),
            )
        except BaseException as error:
            # Nobody has this grant, so it must not stay alive at Everifin.
            revocation.revoke_unused(grant.tokens, _why_unused(error))
            raise
        return request.user

    def _not_exchanged(self, request: HttpRequest, flow: Flow, error: APIError) -> HttpResponse:
        if isinstance(error, UnavailableError):
            security_logger.info(
                "A %s with Everifin was not finished: %s.", flow.kind, notices.UNAVAILABLE
            )
            login_flow.leave_session_alone(request)
            again = Action(_("Start again"), _start_page(flow))
            return unavailable(request, error.retry_after_seconds, action=again)
        security_logger.error("Everifin refused the login code: %s.", error.code)
        return self._tell(request, flow, notices.FAILED)


@auth_view
class LogoutView(View):
    """
    End the connection and the session here. The local part never waits longer than the deadline.

    With EVERIFIN_POST_LOGOUT_REDIRECT_URI the browser then logs out at Everifin, and comes back.
    ``next`` is kept until then, in one INSERT, if that URL is ``LoggedOutView``.
    """

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        user, record_id = request.user, browser_session.record_id_of(request.session)
        is_impersonated = browser_session.is_impersonated(request)
        next_url = login_flow.safe_next(request, request.POST.get("next", ""))
        # First of all: whatever fails below, nobody stays logged in.
        auth.logout(request)
        request.everifin_logged_out = None  # type: ignore[attr-defined]  # it is done here
        response: HttpResponse | None = None
        try:
            if record_id is not None:
                response = _to_logout_page(request, logout.log_out(record_id), next_url)
            elif user.is_authenticated and conf.logout_ends_connection and not is_impersonated:
                grants.disconnect(user, "logout")
        except Exception as error:  # noqa: BLE001 - the person is logged out here
            security_logger.critical("A logout was not told to Everifin: %s.", type(error).__name__)
        _say(request, FlowKind.LOGOUT)
        response = response or _after_logout(next_url)
        response["Clear-Site-Data"] = '"cache", "storage"'
        return response


@auth_view
class LoggedOutView(View):
    """
    Take a visitor back from Everifin's logout page, to where the logout was to lead. One query with
    a ``state``; nothing depends on it but where the visitor is led.
    """

    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        try:
            flow = login_flow.find(Secret(request.GET.get("state", "")))
        except KeysUnavailableError:
            flow = None
        if flow is None or not _is_own_logout(request, flow):
            return _after_logout("")
        return _after_logout(login_flow.safe_next(request, flow.next_url))


@method_decorator(login_not_required, name="dispatch")
@method_decorator(outside_transactions, name="dispatch")
@method_decorator(never_cache, name="dispatch")
@method_decorator(csrf_exempt, name="dispatch")
@method_decorator(sensitive_post_parameters(), name="dispatch")
class BackchannelLogoutView(View):
    """
    Everifin says that a session has ended there: 200, or 400 for what is refused, without an
    explanation.

    Source: OpenID Connect Back-Channel Logout 1.0, sections 2.5 and 2.8.
    """

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        if not conf.backchannel_logout:
            raise Http404
        given = request.POST.getlist("logout_token")
        try:
            ended = backchannel_logout.end_sessions(Secret(given[0] if len(given) == 1 else ""))
        except (LoginError, UnavailableError) as error:
            reason = error.reason if isinstance(error, LoginError) else "keys_unavailable"
            security_logger.warning("A logout from Everifin was refused: %s.", reason)
            return HttpResponse(status=400)
        security_logger.info("Everifin logged somebody out; sessions ended: %d.", ended)
        return HttpResponse()


@auth_view
class DisconnectView(View):
    """End the connection; the user stays logged in."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        if request.user.is_authenticated:
            if (refusal := access.refusal(request, "disconnect")) is not None:
                return cast("HttpResponse", refusal)
            grants.disconnect(request.user, "disconnected")
            _say(request, "disconnect")
        return ReturnRedirect(login_flow.next_or_default(request, request.POST.get("next", "")))


@method_decorator(login_required, name="dispatch")
@method_decorator(never_cache, name="dispatch")
class BankView(TemplateView):
    """
    What to do where ``accounts()`` has none yet: banks are added in Everifin's web app, from which
    the user comes back by themselves. No query of its own, no request.
    """

    template_name = "everifin_django/bank.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        next_url = login_flow.next_or_default(self.request, self.request.GET.get("next", ""))
        return super().get_context_data(next=next_url, **kwargs)


def _say(request: HttpRequest, done: str) -> None:
    """Tell the visitor what was done, on the next page of a site that shows Django's messages."""
    messages.success(request, DONE[done], fail_silently=True)


def _parameters(request: HttpRequest) -> dict[str, Secret]:
    """
    The answer's parameters, taken out of the request: a report about a later error must not show
    the code.

    Errors: LoginError if one comes twice, is too long, or the state is missing.
    """
    query = take_query(request)
    parameters = {}
    for name, longest in LONGEST_PARAMETERS.items():
        values = query.getlist(name)
        if len(values) > 1 or any(len(value) > longest for value in values):
            raise LoginError("parameters_malformed")
        if values:
            parameters[name] = Secret(values[0])
    if "state" not in parameters:
        raise LoginError("state_missing")
    return parameters


def take_query(request: HttpRequest) -> QueryDict:
    """
    The query, removed from every attribute of the request that contains it: servers and proxies add
    copies, such as RAW_URI and X-Original-URI.
    """
    environ = request.META
    text = environ["QUERY_STRING"]
    query, request.GET = request.GET, QueryDict()
    for name, value in environ.items():
        if isinstance(value, str) and f"?{value}".endswith(f"?{text}"):
            environ[name] = value.removesuffix(text)
    if isinstance(request, ASGIRequest):
        cast("dict[str, Any]", request.scope)["query_string"] = b""
    return query


def _next_in(request: HttpRequest) -> Any:
    """What a form or a JSON object names as ``next``."""
    if request.content_type != "application/json":
        return request.POST.get("next", "")
    try:
        given = strict_json(request.body)
    except ValueError:
        return ""
    return given.get("next", "") if isinstance(given, dict) else ""


def _logged_in_already(request: HttpRequest, asked_for: Any) -> HttpResponse:
    next_url = login_flow.next_or_default(request, asked_for)
    if prefers_json(request):
        return JsonResponse({"authorize_url": next_url})
    return ReturnRedirect(next_url)


def _user_pk(request: HttpRequest) -> str:
    return str(request.user.pk) if request.user.is_authenticated else ""


def _login_backend() -> EverifinBackend:
    backend = login_backend()
    if backend is None:
        raise Http404
    return backend


def _authenticate(request: HttpRequest, grant: Grant) -> Any:
    """
    Return the user whom Django's backends let in for *grant*.

    Errors: LoginError, IdentityTakenError. Django has then sent ``user_login_failed``.
    """
    attempt = LoginAttempt(grant)
    user: Any = auth.authenticate(request, everifin_tokens=attempt)
    if attempt.error is not None:
        raise attempt.error
    if user is None or not is_ours(user.backend):
        # Another backend of the site refused, or took for its own what was not.
        raise LoginRefusedError
    return user


def _why_unused(error: BaseException) -> str:
    if isinstance(error, IdentityTakenError):
        return "identity_taken"
    return "no_user" if getattr(error, "reason", "") == "no_user" else "login_failed"


def _told(error: LoginError) -> str | Notice:
    notice = notices.of_reason(error.reason)
    if isinstance(error, LoginRefusedError) and error.message:
        return Notice(notices.NOTICES[notice].title, error.message)
    return notice


def _to_logout_page(
    request: HttpRequest, ended: logout.Ended | None, next_url: str
) -> HttpResponse | None:
    """Leave for Everifin's page that logs the browser out there, if it has a session there."""
    back = conf.post_logout_redirect_uri
    if ended is None or not back:
        return None
    state = secrets.token_urlsafe(32)
    response = leave_for(request, endpoints.logout_page(ended.id_token, state))
    is_kept = urlsplit(back).path == reverse("everifin_django:logged_out")
    if next_url and is_kept and not conf.legacy_logout:
        flow = Flow(FlowKind.LOGOUT, "", conf.issuer, back, next_url, request.get_host())
        login_flow.begin(request, response, state, flow)
    return response


def _is_own_logout(request: HttpRequest, flow: Flow) -> bool:
    is_current = flow.kind == FlowKind.LOGOUT and not flow.is_too_old
    return is_current and login_flow.is_of_this_browser(request, flow)


def _after_logout(next_url: str) -> HttpResponse:
    home = settings.LOGOUT_REDIRECT_URL or get_script_prefix()
    return ReturnRedirect(next_url or resolve_url(home))


def _start_page(flow: Flow, notice: str = "") -> str:
    query = {"next": flow.next_url, "notice": notice}
    given = urlencode({name: value for name, value in query.items() if value})
    return reverse(f"everifin_django:{flow.kind}") + (f"?{given}" if given else "")


def _to_login_page(request: HttpRequest, next_url: str) -> Action:
    page = redirect_to_login(next_url).url if next_url else resolve_url(settings.LOGIN_URL)
    return Action(pgettext("button", "Log in"), page)


def _notice_to_show(request: HttpRequest) -> Notice | None:
    """What a start page says first: what a page left in the session, or an error of Everifin's."""
    left = request.session.pop(NOTICE_SESSION_KEY, "")
    asked_for = request.GET.get("notice", "")
    return notices.NOTICES.get(left or (asked_for if asked_for in notices.AFTER_ERRORS else ""))


def _who(request: HttpRequest, flow: Flow | None) -> LoggedIn:
    user_pk = _user_pk(request)
    if not user_pk:
        return LoggedIn.NOBODY
    return LoggedIn.SAME if flow is not None and flow.user_pk == user_pk else LoggedIn.ANOTHER


def _check_issuer(parameters: dict[str, Secret], flow: Flow) -> None:
    if "iss" not in parameters and conf.require_iss:
        raise LoginError("issuer_missing")
    if parameters.get("iss", Secret(conf.issuer)) != Secret(conf.issuer):
        raise LoginError("issuer_foreign")
    if flow.issuer != conf.issuer:
        raise LoginError("issuer_changed")


def _notice_of(parameters: dict[str, Secret]) -> str:
    error = parameters["error"].reveal()
    described = parameters.get("error_description", NO_CODE).reveal()
    if error in BEGIN_AGAIN or (error, described) == KEYCLOAK_EXPIRED:
        return notices.BEGIN_AGAIN
    outage = notices.UNAVAILABLE if error in NOTICE_OF_OUTAGE else notices.FAILED
    return NOTICE_OF_ERROR.get(error, outage)
